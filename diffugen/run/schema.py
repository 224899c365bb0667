"""The tables of a ledger: one script for each version of the schema, and what the columns may hold.

Knows SQL as text; does not open a ledger (``ledger.py`` does).
"""

from __future__ import annotations

READABLE = 3
"""The oldest schema that can be read as it is, so that old runs can be looked at without being changed."""

WITH_JUDGED = 4
"""The first schema whose decisions have the column ``judged``."""

WITH_CHECKS = 5
"""The first schema whose tables check their values themselves."""

WITH_COUNTS = 6
"""The first schema that keeps the counts of images, labels and disagreements."""

MOST_ROUNDS = 1_000_000
"""No round has a higher number."""


def _all(*conditions: str) -> str:
    # A comparison with NULL is neither true nor false, and a CHECK would let it pass.
    return f"({' AND '.join(conditions)}) IS TRUE"


def _text(*names: str) -> str:
    return " AND ".join(f"typeof({name}) = 'text'" for name in names)


def _number(*names: str) -> str:
    return " AND ".join(f"typeof({name}) IN ('integer', 'real')" for name in names)


def _integer(name: str) -> str:
    return f"typeof({name}) = 'integer'"


def _image_id(name: str) -> str:
    # Ids name files, so nothing else may stand there.
    return f"{_text(name)} AND length({name}) = 16 AND {name} NOT GLOB '*[^0-9a-f]*'"


_ROUND = f"{_integer('round')} AND round BETWEEN 0 AND {MOST_ROUNDS}"
_TIME = (
    f"{_text('created_at')} AND created_at GLOB '????-??-??T??:??:??*+00:00' "
    "AND date(julianday(created_at)) IS substr(created_at, 1, 10)"
)

CHECKS = {
    "images": _all(_image_id("id"), _ROUND, _text("record"), _number("seconds"), _integer("bytes"), _TIME),
    "labels": _all(
        _image_id("image_id"), _text("source", "method", "instances"), _ROUND, _integer("objects"), _TIME
    ),
    "stages": _all(_ROUND, _text("name", "result"), _number("seconds"), _TIME),
    "disagreements": _all(_image_id("image_id"), _ROUND, _text("kind"), _number("severity", "iou")),
    "decisions": _all(_image_id("image_id"), _text("verdict", "reviewer"), _ROUND, _TIME),
    "dropped": _all(_image_id("id"), _ROUND, _text("reason"), _TIME),
}
"""From a table to what holds for its rows. Part of schema 5: another condition needs another schema."""

_COUNTS = {
    "image_counts": (
        "SELECT round, count(*) AS images, sum(seconds) AS seconds, sum(bytes) AS bytes FROM images "
        "GROUP BY round"
    ),
    "label_counts": (
        "SELECT source, method, round, count(*) AS label_sets, sum(objects) AS objects FROM labels "
        "GROUP BY source, method, round"
    ),
    "disagreement_counts": (
        "SELECT round, kind, count(*) AS disagreements FROM disagreements GROUP BY round, kind"
    ),
    "contested_counts": (
        "SELECT round, count(*) AS images FROM (SELECT DISTINCT image_id, round FROM disagreements) "
        "GROUP BY round"
    ),
}
"""From a table of counts to the query whose result it keeps."""


def counts(table: str, version: int) -> str:
    """Return what to read a table of counts from: the table, or a query where the schema is older."""
    return table if version >= WITH_COUNTS else f"({_COUNTS[table]})"


def _keep_counts(table: str, counted: str, keys: tuple[str, ...], sums: tuple[str, ...]) -> str:
    """Return triggers that keep the counts of a table: a row for each value of the keys that occurs.

    Not an upsert: within a trigger, the statement that fires it decides on conflicts. What is no number makes
    a sum NULL, which the table of counts refuses.
    """
    count, *summed = sums

    def change(row: str, sign: str) -> str:
        same = " AND ".join(f"{key} = {row}.{key}" for key in keys)
        number = "CASE WHEN typeof({0}) IN ('integer', 'real') THEN {0} END"
        changed = [f"{count} = {count} {sign} 1"]
        changed += [f"{name} = {name} {sign} {number.format(f'{row}.{name}')}" for name in summed]
        return f"UPDATE {table} SET {', '.join(changed)} WHERE {same};"

    columns = ", ".join(f"new.{key}" for key in keys) + ", 0" * len(sums)
    same = " AND ".join(f"{key} = new.{key}" for key in keys)
    add = (
        f"INSERT INTO {table} SELECT {columns} WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {same}); "
        + change("new", "+")
    )
    take = f"{change('old', '-')} DELETE FROM {table} WHERE {count} = 0;"
    bodies = {"insert": add, "delete": take, "update": f"{add} {take}"}
    return "".join(
        f"CREATE TRIGGER {table}_{event} AFTER {event.upper()} ON {counted} BEGIN {body} END;"
        for event, body in bodies.items()
    )


def _keep_contested() -> str:
    """Return triggers that keep the number of images with a disagreement."""

    def change(row: str, by: str, if_it_has: int) -> str:
        same = f"image_id = {row}.image_id AND round = {row}.round"
        rest = f"SELECT count(*) FROM (SELECT 1 FROM disagreements WHERE {same} LIMIT 2)"
        return (
            f"UPDATE contested_counts SET images = images {by} "
            f"WHERE round = {row}.round AND ({rest}) = {if_it_has};"
        )

    known = "SELECT 1 FROM contested_counts WHERE round = new.round"
    add = f"INSERT INTO contested_counts SELECT new.round, 0 WHERE NOT EXISTS ({known}); "
    add += change("new", "+ 1", if_it_has=1)
    take = change("old", "- 1", if_it_has=0) + " DELETE FROM contested_counts WHERE images = 0;"
    moved = "WHEN old.image_id IS NOT new.image_id OR old.round IS NOT new.round"
    return "".join(
        f"CREATE TRIGGER contested_counts_{event} AFTER {event.upper()} ON disagreements {body} END;"
        for event, body in {
            "insert": f"BEGIN {add}",
            "delete": f"BEGIN {take}",
            "update": f"{moved} BEGIN {add} {take}",
        }.items()
    )


MIGRATIONS: tuple[str, ...] = (
    # Version 1. `seq` is the order of writing: it never repeats, so paging by it is cheap and stable.
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE images (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, round INTEGER NOT NULL,
        record TEXT NOT NULL,
        seconds REAL NOT NULL, bytes INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX images_by_round ON images (round, seq, seconds, bytes, created_at);
    CREATE TABLE labels (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        source TEXT NOT NULL,
        method TEXT NOT NULL, round INTEGER NOT NULL, instances TEXT NOT NULL, objects INTEGER NOT NULL,
        created_at TEXT NOT NULL, UNIQUE (image_id, source, method));
    CREATE INDEX labels_by_source ON labels (source, seq, round, objects, created_at);
    CREATE TABLE stages (
        round INTEGER NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (round, name)) WITHOUT ROWID;
    """,
    # Version 2: the review queue and its decisions. No decision is replaced: the newest of an image counts.
    """
    CREATE TABLE disagreements (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        round INTEGER NOT NULL,
        kind TEXT NOT NULL, severity REAL NOT NULL, attention INTEGER, model INTEGER, iou REAL NOT NULL);
    CREATE INDEX disagreements_by_round ON disagreements (round, kind);
    CREATE TABLE decisions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        verdict TEXT NOT NULL,
        instances TEXT, reviewer TEXT NOT NULL, round INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX decisions_by_image ON decisions (image_id, seq);
    CREATE INDEX decisions_by_round ON decisions (round, verdict);
    """,
    # Version 3: images that turned out unusable, so that they are not generated again.
    """
    CREATE TABLE dropped (
        id TEXT PRIMARY KEY, round INTEGER NOT NULL, reason TEXT NOT NULL,
        created_at TEXT NOT NULL) WITHOUT ROWID;
    """,
    # Version 4: what was said about single objects. Readers need not have it.
    """
    ALTER TABLE decisions ADD COLUMN judged TEXT;
    """,
    # Version 5: the tables check their values, so opening a ledger need not look at all rows; and indexes
    # from which a large run is counted, and its audits are drawn: `audit` is the place of an image in that
    # draw, and depends on its id alone. SQLite cannot add a check to a table, so each is made anew, and keeps
    # the newest number of `seq` that it ever had.
    f"""
    CREATE TABLE checked_images (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, round INTEGER NOT NULL,
        record TEXT NOT NULL,
        seconds REAL NOT NULL, bytes INTEGER NOT NULL, created_at TEXT NOT NULL, audit TEXT NOT NULL,
        CHECK ({CHECKS["images"]}));
    CREATE TABLE checked_labels (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        source TEXT NOT NULL,
        method TEXT NOT NULL, round INTEGER NOT NULL, instances TEXT NOT NULL, objects INTEGER NOT NULL,
        created_at TEXT NOT NULL, UNIQUE (image_id, source, method),
        CHECK ({CHECKS["labels"]}));
    CREATE TABLE checked_stages (
        round INTEGER NOT NULL, name TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (round, name),
        CHECK ({CHECKS["stages"]})) WITHOUT ROWID;
    CREATE TABLE checked_disagreements (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        round INTEGER NOT NULL,
        kind TEXT NOT NULL, severity REAL NOT NULL, attention INTEGER, model INTEGER, iou REAL NOT NULL,
        CHECK ({CHECKS["disagreements"]}));
    CREATE TABLE checked_decisions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL REFERENCES images (id),
        verdict TEXT NOT NULL,
        instances TEXT, reviewer TEXT NOT NULL, round INTEGER NOT NULL, created_at TEXT NOT NULL, judged TEXT,
        CHECK ({CHECKS["decisions"]}));
    CREATE TABLE checked_dropped (
        id TEXT PRIMARY KEY, round INTEGER NOT NULL, reason TEXT NOT NULL,
        created_at TEXT NOT NULL,
        CHECK ({CHECKS["dropped"]})) WITHOUT ROWID;
    """
    + "".join(
        f"""
    INSERT INTO checked_{table} SELECT *{", audit_place(id)" if table == "images" else ""} FROM {table};
    DELETE FROM sqlite_sequence WHERE name = 'checked_{table}';
    INSERT INTO sqlite_sequence SELECT 'checked_{table}', seq FROM sqlite_sequence WHERE name = '{table}';
    DROP TABLE {table};
    ALTER TABLE checked_{table} RENAME TO {table};
    """
        for table in CHECKS
    )
    + """
    CREATE INDEX images_by_round ON images (round, seq, seconds, bytes, created_at);
    CREATE INDEX labels_by_source ON labels (source);
    CREATE INDEX labels_by_round ON labels (source, round, seq, objects, created_at);
    CREATE INDEX images_by_audit ON images (round, audit);
    CREATE INDEX disagreements_by_round ON disagreements (round);
    CREATE INDEX disagreements_by_kind ON disagreements (round, kind);
    CREATE INDEX disagreements_by_image ON disagreements (image_id, round);
    CREATE INDEX decisions_by_image ON decisions (image_id, seq);
    CREATE INDEX decisions_by_round ON decisions (round);
    CREATE INDEX decisions_by_verdict ON decisions (round, verdict, image_id, seq, created_at);
    """,
    # Version 6: the numbers of images, labels and disagreements are kept instead of being counted each time,
    # and audits are drawn from an index alone.
    """
    CREATE TABLE image_counts (
        round INTEGER PRIMARY KEY, images INTEGER NOT NULL, seconds REAL NOT NULL,
        bytes INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE label_counts (
        source TEXT NOT NULL, method TEXT NOT NULL, round INTEGER NOT NULL, label_sets INTEGER NOT NULL,
        objects INTEGER NOT NULL, PRIMARY KEY (source, method, round)) WITHOUT ROWID;
    CREATE TABLE disagreement_counts (
        round INTEGER NOT NULL, kind TEXT NOT NULL, disagreements INTEGER NOT NULL,
        PRIMARY KEY (round, kind)) WITHOUT ROWID;
    CREATE TABLE contested_counts (round INTEGER PRIMARY KEY, images INTEGER NOT NULL) WITHOUT ROWID;
    DROP INDEX disagreements_by_kind;
    DROP INDEX images_by_audit;
    CREATE INDEX images_by_audit ON images (round, audit, id);
    """
    + "".join(f"INSERT INTO {table} {query};" for table, query in _COUNTS.items())
    + _keep_counts("image_counts", "images", ("round",), ("images", "seconds", "bytes"))
    + _keep_counts("label_counts", "labels", ("source", "method", "round"), ("label_sets", "objects"))
    + _keep_counts("disagreement_counts", "disagreements", ("round", "kind"), ("disagreements",))
    + _keep_contested(),
)
"""One script per schema version, run in order; a new ledger runs all. To add a table, append a script."""
