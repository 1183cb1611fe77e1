"""Export: a study's finished trials as runs of another tool, in a folder. Nothing is sent anywhere."""
