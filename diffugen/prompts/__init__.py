"""From templates and values to the prompts and tasks of a run."""
