"""The store goes in, a picture of it in another tool comes out: always rebuildable, never the truth.

Nothing is imported here, so that a run can start its mirror without the other tool.
"""
