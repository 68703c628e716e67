"""Option files: how they are read, what is declared of their keys, and what is checked before a run begins."""
