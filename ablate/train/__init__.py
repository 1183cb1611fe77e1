"""Settings and a ``Context`` go in, metrics come out. The only room that imports torch.

Nothing is imported here, so that the runner can read the attempt folder's format without torch.
"""
