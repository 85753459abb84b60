-- The tables of the embedded store. `tasks` is small and hot; payloads and history stand apart.

CREATE TABLE tenants (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    created_ms   INTEGER NOT NULL
) STRICT;
INSERT INTO tenants VALUES ('default', 'default', 0);

-- Who may do what, once there are accounts: a role is `admin`, `submitter`, `operator` or `auditor`.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants(id),
    role         TEXT NOT NULL,
    key_sha256   BLOB NOT NULL UNIQUE,
    created_ms   INTEGER NOT NULL,
    revoked_ms   INTEGER
) STRICT;

CREATE TABLE tasks (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              BLOB NOT NULL UNIQUE,
    tenant          TEXT NOT NULL REFERENCES tenants(id),
    kind            TEXT NOT NULL,
    model           TEXT NOT NULL,
    priority        INTEGER NOT NULL,
    state           INTEGER NOT NULL,
    epoch           INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    failures_max    INTEGER NOT NULL,
    submitted_ms    INTEGER NOT NULL,
    not_before_ms   INTEGER NOT NULL,
    deadline_ms     INTEGER,
    finished_ms     INTEGER,
    node            TEXT,
    session         INTEGER NOT NULL DEFAULT 0,
    lease_until_ms  INTEGER,
    request_sha256  BLOB NOT NULL,
    idempotency_key TEXT,
    failure         TEXT,
    facts           TEXT
) STRICT;
CREATE UNIQUE INDEX tasks_by_key ON tasks (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_queued ON tasks (kind, model, priority DESC, seq) WHERE state = 0;
CREATE INDEX tasks_held ON tasks (node) WHERE state = 1;
CREATE INDEX tasks_lease ON tasks (lease_until_ms) WHERE state = 1;
CREATE INDEX tasks_deadline ON tasks (deadline_ms) WHERE state < 2 AND deadline_ms IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (finished_ms) WHERE state >= 2;

-- How many tasks stand where: to count them anew would take longer with every task. Kept by the triggers alone.
CREATE TABLE totals (
    state        INTEGER PRIMARY KEY,
    tasks        INTEGER NOT NULL
) STRICT;
INSERT INTO totals VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0);
CREATE TRIGGER task_added AFTER INSERT ON tasks BEGIN
    UPDATE totals SET tasks = tasks + 1 WHERE state = new.state;
END;
CREATE TRIGGER task_moved AFTER UPDATE OF state ON tasks WHEN old.state <> new.state BEGIN
    UPDATE totals SET tasks = tasks - 1 WHERE state = old.state;
    UPDATE totals SET tasks = tasks + 1 WHERE state = new.state;
END;
CREATE TRIGGER task_removed AFTER DELETE ON tasks BEGIN
    UPDATE totals SET tasks = tasks - 1 WHERE state = old.state;
END;

CREATE TABLE payloads (
    seq          INTEGER PRIMARY KEY REFERENCES tasks(seq) ON DELETE CASCADE,
    input        BLOB NOT NULL,
    output       BLOB
) STRICT;

CREATE TABLE attempts (
    seq          INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
    epoch        INTEGER NOT NULL,
    node         TEXT NOT NULL,
    started_ms   INTEGER NOT NULL,
    ended_ms     INTEGER,
    outcome      TEXT,
    failure      TEXT,
    PRIMARY KEY (seq, epoch)
) STRICT, WITHOUT ROWID;

-- Nodes that are passed over for a task until a time.
CREATE TABLE exclusions (
    seq          INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
    node         TEXT NOT NULL,
    until_ms     INTEGER NOT NULL,
    PRIMARY KEY (seq, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL REFERENCES tenants(id),
    public_key    BLOB NOT NULL,
    name          TEXT NOT NULL,
    region        TEXT NOT NULL,
    profile       TEXT NOT NULL,
    registered_ms INTEGER NOT NULL,
    seen_ms       INTEGER NOT NULL,
    state         TEXT NOT NULL,
    settled       INTEGER NOT NULL DEFAULT 0,
    faulted       INTEGER NOT NULL DEFAULT 0,
    lost          INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE models (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL,
    version       TEXT NOT NULL,
    manifest      TEXT NOT NULL,
    digest        TEXT NOT NULL,
    registered_ms INTEGER NOT NULL,
    UNIQUE (name, version)
) STRICT;
