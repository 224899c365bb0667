"""A person's session over the review queue: in the FiftyOne App, or on one HTML page without it.

`queue` says what is looked at, `database` and `session` are the App, `static` is the page. Both ways end in
`diffugen.records.Decision`s, which the caller keeps with `RunStore.add_decisions`.
"""
