//! What comes in: the Rust files of the rooms. What goes out: libraries that are named outside the part of the house that
//! knows them.

use super::{Finding, Tree, source};

/// One library, the room it is ruled in, and where in that room it may be named.
struct Known {
    library: &'static str,
    room: &'static str,
    /// Parts of a path: a folder ends with `/`.
    places: &'static [&'static str],
    /// Paths in the library that the whole room may name.
    free: &'static [&'static str],
    why: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        library: "axum",
        room: "worker/src/",
        places: &["http/"],
        free: &[],
        why: "the rest of the worker serves no HTTP",
    },
    Known {
        library: "utoipa_axum",
        room: "worker/src/",
        places: &["http/"],
        free: &[],
        why: "routes are described beside their handlers",
    },
    Known {
        library: "axum",
        room: "coordinator/src/",
        places: &["http/"],
        free: &[],
        why: "the rest of the coordinator serves no HTTP",
    },
    Known {
        library: "utoipa_axum",
        room: "coordinator/src/",
        places: &["http/"],
        free: &[],
        why: "routes are described beside their handlers",
    },
    Known {
        library: "coordinator_client",
        room: "worker/src/",
        // Both the local API and the link speak in the wire's types; `convert.rs` is what they share.
        places: &["link/", "http/", "config/", "convert.rs", "lib.rs"],
        // Codes, priorities: the words of the API, which every error and task of the worker carries. And texts: their pieces go out as
        // they are written, whoever asked.
        free: &["coordinator_client::api", "coordinator_client::wire::text"],
        why: "work from a coordinator is work like any other once it is past link/",
    },
    Known {
        library: "rusqlite",
        room: "coordinator/src/",
        places: &["store/"],
        free: &[],
        why: "the rest of the coordinator knows the trait Store",
    },
    Known {
        library: "candle_core",
        room: "models/src/",
        places: &["backend/", "arch/", "load/"],
        free: &[],
        why: "Engine has no Candle type in it",
    },
    Known {
        library: "ort",
        room: "models/src/",
        places: &["backend/"],
        free: &[],
        why: "Engine has no type of ONNX Runtime in it",
    },
    Known {
        library: "nvml_wrapper",
        room: "worker/src/",
        places: &["hardware/"],
        free: &[],
        why: "the rest of the worker reads the profile",
    },
    Known {
        library: "wgpu",
        room: "worker/src/",
        places: &["hardware/"],
        free: &[],
        why: "the rest of the worker reads the profile",
    },
    Known { library: "hf_hub", room: "worker/src/", places: &["cache/"], free: &[], why: "only cache/ fetches models" },
];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.rust() {
        let ruled: Vec<&Known> = KNOWN.iter().filter(|known| is_ruled(known, file)).collect();
        if ruled.is_empty() {
            continue;
        }
        for (number, line) in source::code_only(text).lines().enumerate() {
            for Known { library, places, why, .. } in ruled.iter().filter(|known| names(line, known)) {
                let message = format!("`{library}` is known only in {}: {why}; move this there", places.join(", "));
                findings.push(Finding::new(file, number + 1, message));
            }
        }
    }
    findings
}

/// True when the line names the library otherwise than by a free path.
fn names(line: &str, known: &Known) -> bool {
    let rest = known.free.iter().fold(line.to_owned(), |line, free| line.replace(free, ""));
    source::has_word(&rest, known.library)
}

/// True when the file is in the room and not in one of the places.
fn is_ruled(known: &Known, file: &str) -> bool {
    let Some(inside) = file.strip_prefix(known.room) else { return false };
    let in_place =
        known.places.iter().any(|place| inside == *place || format!("/{inside}").contains(&format!("/{place}")));
    !in_place
}

#[cfg(test)]
mod tests {
    use super::{super::expect, check};

    #[test]
    fn the_http_server_is_known_only_in_http() {
        let files = [
            ("worker/src/http/tasks.rs", "//! x\nuse axum::Router;\n"),
            ("worker/src/link/mod.rs", "//! x\n// axum::Router\nuse axum::Router;\n"),
            ("coordinator/src/nodes/http/mod.rs", "//! x\nuse axum::Router;\n"),
            ("coordinator/src/lib.rs", "//! x\n\nlet r = axum::Router::new();\n"),
            ("benches/src/lib.rs", "//! x\nuse axum::Router;\n"),
        ];
        expect(check, &files, &[("coordinator/src/lib.rs:3", "http/"), ("worker/src/link/mod.rs:3", "http/")]);
    }

    #[test]
    fn the_coordinators_wire_is_known_only_at_the_edge() {
        let files = [
            ("worker/src/lib.rs", "//! x\nuse coordinator_client::wire;\n"),
            ("worker/src/batch/mod.rs", "//! x\nuse coordinator_client::wire;\n"),
            ("worker/src/error.rs", "//! x\nuse coordinator_client::api::Code;\n"),
            ("worker/src/link/lib.rs", "//! x\nuse coordinator_client::wire;\n"),
        ];
        expect(check, &files, &[("worker/src/batch/mod.rs:2", "link/")]);
    }

    #[test]
    fn a_folder_whose_name_only_ends_alike_is_no_place() {
        let files = [("worker/src/nohttp/mod.rs", "//! x\nuse axum::Router;\n")];
        expect(check, &files, &[("worker/src/nohttp/mod.rs:2", "axum")]);
    }
}
