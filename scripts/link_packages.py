"""Link passes/ and runtime/ into cnpass/, where type checkers look for them and installing puts them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the two links, which git ignores, unless they are there."""
    for name in ("passes", "runtime"):
        link = ROOT / "cnpass" / name
        if not link.is_symlink():
            link.symlink_to(Path("..") / name)


if __name__ == "__main__":
    main()
