"""Who works on the tasks of a run: this process, several on this machine, the ranks of torchrun, a Ray cluster. Knows no recipe and no store."""
