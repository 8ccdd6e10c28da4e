"""How good a checkpoint is: tasks on JSON lines, scored as the published figures are."""
