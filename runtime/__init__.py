"""The op contract, device models, references and sessions."""
