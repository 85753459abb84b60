//! Which models go when room is needed: sizes and last uses go in, names come out. It deletes nothing.

/// A model, as far as eviction is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) id: String,
    pub(super) bytes: u64,
    pub(super) last_used_ms: u64,
    /// Pinned or in use.
    pub(super) stays: bool,
}

/// The models to evict so that `need` more bytes fit into `quota`, the least recently used first; or the bytes that
/// would still be missing after all that may go has gone.
pub(super) fn choose(held: &[Held], need: u64, quota: u64) -> Result<Vec<String>, u64> {
    let used: u64 = held.iter().map(|model| model.bytes).sum();
    let mut over = used.saturating_add(need).saturating_sub(quota);
    let mut evictable: Vec<&Held> = held.iter().filter(|model| !model.stays).collect();
    evictable.sort_by(|a, b| (a.last_used_ms, &a.id).cmp(&(b.last_used_ms, &b.id)));
    let mut gone = Vec::new();
    for model in evictable {
        if over == 0 {
            break;
        }
        over = over.saturating_sub(model.bytes);
        gone.push(model.id.clone());
    }
    if over == 0 { Ok(gone) } else { Err(over) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(id: &str, bytes: u64, last_used_ms: u64, stays: bool) -> Held {
        Held { id: id.into(), bytes, last_used_ms, stays }
    }

    fn check(models: &[Held], need: u64, quota: u64, want: Result<&[&str], u64>) {
        let want = want.map(|ids| ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>());
        assert_eq!(choose(models, need, quota), want);
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let models = [held("new", 10, 3, false), held("old", 10, 1, false), held("mid", 10, 2, false)];
        check(&models, 0, 30, Ok(&[]));
        check(&models, 5, 35, Ok(&[]));
        check(&models, 1, 30, Ok(&["old"]));
        check(&models, 15, 30, Ok(&["old", "mid"]));
        check(&models, 30, 30, Ok(&["old", "mid", "new"]));
        check(&models, 31, 30, Err(1));
    }

    #[test]
    fn what_is_pinned_or_in_use_stays_however_old() {
        let models = [held("pinned", 10, 1, true), held("free", 10, 2, false)];
        check(&models, 5, 20, Ok(&["free"]));
        check(&models, 15, 20, Err(5));
    }

    proptest! {
        #[test]
        fn evicting_leaves_room_and_never_takes_what_stays(
            models in proptest::collection::vec((0u64..100, 0u64..10, any::<bool>()), 0..12), need in 0u64..300, quota in 0u64..600,
        ) {
            let models: Vec<Held> =
                models.iter().enumerate().map(|(i, &(bytes, used, stays))| held(&format!("m{i}"), bytes, used, stays)).collect();
            let sum = |keep: &dyn Fn(&Held) -> bool| models.iter().filter(|m| keep(m)).map(|m| m.bytes).sum::<u64>();
            match choose(&models, need, quota) {
                Ok(gone) => {
                    prop_assert!(gone.is_empty() || sum(&|m| !gone.contains(&m.id)) + need <= quota);
                    prop_assert!(models.iter().all(|m| !m.stays || !gone.contains(&m.id)));
                    // Without the last of them there would have been too little room.
                    if let Some(last) = gone.last() {
                        prop_assert!(sum(&|m| !gone.contains(&m.id) || m.id == *last) + need > quota);
                    }
                }
                Err(missing) => prop_assert_eq!(sum(&|m| m.stays) + need, quota + missing),
            }
        }
    }
}
