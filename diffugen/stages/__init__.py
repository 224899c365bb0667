"""The stages of a round, a file each; `loops/` holds their order."""
