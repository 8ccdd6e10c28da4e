"""Published PyTorch checkpoints in and out, and parity with the PyTorch model.

`table_*.py` say, as data, which published tensor is which of our parameters. `import_checkpoint` and
`export_checkpoint` stream a whole checkpoint through those tables, `restore` loads the result, and
`random_checkpoint` makes small published-style checkpoints to test with.
"""
