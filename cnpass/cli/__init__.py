"""The command line: stdout carries data only, stderr progress and messages."""
