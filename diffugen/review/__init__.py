"""A person's review of the queue: in the FiftyOne App, on an HTML page without it, or in another tool.

`queue` says which images to look at. In the App, `session` has the three steps: `push` the queue into a
dataset, `open_app` on it, and a `Takeover` of what is decided there; `database` is where the dataset lives,
`plugin` is what runs in the App. `static` writes the page and `serve` serves it; `decisions` reads what it
saves. `trips` writes the queue for annotation tools and reads what they export. All ways end in
`diffugen.records.Decision`s in the run.
"""
