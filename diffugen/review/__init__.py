"""A person's review of the queue: in the FiftyOne App, or on one HTML page without it.

`queue` says which images to look at. In the App, `session` has the three steps: `push` the queue into a
dataset, `open_app` on it, `pull` the decisions from its tags; `database` is where the dataset lives. `static`
writes the page, and `decisions` reads its decisions file; `trips` writes the queue for annotation tools and
reads what they export. All ways end in `diffugen.records.Decision`s, which the caller keeps with
`RunStore.add_decisions`.
"""
