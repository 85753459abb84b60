//! Who claims what: how well each link fits what waits, in; claims to make, out. Pure: knows no clock, no store, no link.
//!
//! A claim names everything that waits and that the link can do, so the store gives the most urgent of it; the policy
//! only decides how many tasks each link may take. Links with the model in memory come before those that would load
//! it; among equals, the emptier. A model that no link has is fetched by one link at a time, which claims one task for
//! it: if the fetch fails, that attempt says why.

use crate::store::Want;

/// How a link fits a kind and model, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// It cannot do it.
    No,
    /// It could, after fetching the model.
    Fetch,
    /// It can, but found nothing for itself when it last asked, or refused lately.
    Barred,
    /// It has the model on disk.
    Cached,
    /// It has the model in memory.
    Loaded,
}

/// A link, as the policy sees it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// How many more tasks it takes; 0 while a claim of its is under way.
    pub(crate) free: usize,
    /// How many it has.
    pub(crate) busy: usize,
    /// How it fits each of what waits, in that order.
    pub(crate) fits: Vec<Fit>,
}

/// What waits for one kind and model.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    /// Kind and model.
    pub(crate) want: Want,
    /// How many tasks, as far as is known; too high a number costs a claim in vain.
    pub(crate) count: usize,
    /// Whether a link is fetching the model.
    pub(crate) fetching: bool,
}

/// A claim to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Position of the link among the candidates.
    pub(crate) candidate: usize,
    /// Positions of kinds and models among what waits.
    pub(crate) wants: Vec<usize>,
    /// How many tasks.
    pub(crate) max: usize,
    /// Whether the link has to fetch the model.
    pub(crate) fetch: bool,
}

/// Decides who claims what.
pub(crate) fn plan(candidates: &[Candidate], waiting: &[Waiting]) -> Vec<Plan> {
    let mut free: Vec<usize> = candidates.iter().map(|candidate| candidate.free).collect();
    let mut plans = Vec::new();
    for (index, _) in waiting.iter().enumerate().filter(|(_, line)| line.count > 0 && !line.fetching) {
        let fit = |candidate: usize| candidates[candidate].fits[index];
        if (0..candidates.len()).any(|candidate| fit(candidate) > Fit::Fetch) {
            continue;
        }
        let able = (0..candidates.len()).filter(|candidate| fit(*candidate) == Fit::Fetch && free[*candidate] > 0);
        if let Some(candidate) = able.max_by_key(|candidate| (free[*candidate], std::cmp::Reverse(*candidate))) {
            free[candidate] -= 1;
            plans.push(Plan { candidate, wants: vec![index], max: 1, fetch: true });
        }
    }
    let mut shares = vec![0; candidates.len()];
    for (index, line) in waiting.iter().enumerate() {
        share(index, line.count, candidates, &mut free, &mut shares);
    }
    for (candidate, max) in shares.into_iter().enumerate().filter(|(_, share)| *share > 0) {
        let can = |index: &usize| candidates[candidate].fits[*index] >= Fit::Cached && waiting[*index].count > 0;
        plans.push(Plan { candidate, wants: (0..waiting.len()).filter(can).collect(), max, fetch: false });
    }
    plans
}

/// Shares `count` tasks of one kind and model among the links that have the model.
fn share(index: usize, mut count: usize, candidates: &[Candidate], free: &mut [usize], shares: &mut [usize]) {
    let rank = |candidate: usize, free: usize, share: usize| {
        let Candidate { busy, fits, .. } = &candidates[candidate];
        (fits[index], std::cmp::Reverse(busy + share), free, std::cmp::Reverse(candidate))
    };
    let mut heap: std::collections::BinaryHeap<_> = (0..candidates.len())
        .filter(|candidate| candidates[*candidate].fits[index] >= Fit::Cached && free[*candidate] > 0)
        .map(|candidate| rank(candidate, free[candidate], shares[candidate]))
        .collect();
    while count > 0
        && let Some((_, _, _, std::cmp::Reverse(candidate))) = heap.pop()
    {
        count -= 1;
        free[candidate] -= 1;
        shares[candidate] += 1;
        if free[candidate] > 0 {
            heap.push(rank(candidate, free[candidate], shares[candidate]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fit::{Barred, Cached, Fetch, Loaded, No};
    use super::*;
    use coordinator_client::wire::TaskKind;
    use proptest::prelude::*;

    fn waiting(counts: &[usize]) -> Vec<Waiting> {
        let line = |(index, count): (usize, &usize)| Waiting {
            want: Want { kind: TaskKind::Embed, model: format!("m{index}@1") },
            count: *count,
            fetching: false,
        };
        counts.iter().enumerate().map(line).collect()
    }

    /// Links as (free, busy, fits); plans as (link, wants, max, fetch).
    fn check(links: &[(usize, usize, &[Fit])], counts: &[usize], want: &[(usize, &[usize], usize, bool)]) {
        let candidates: Vec<Candidate> = links
            .iter()
            .map(|(free, busy, fits)| Candidate { free: *free, busy: *busy, fits: fits.to_vec() })
            .collect();
        let got = plan(&candidates, &waiting(counts));
        let want: Vec<Plan> = want
            .iter()
            .map(|(candidate, wants, max, fetch)| Plan {
                candidate: *candidate,
                wants: wants.to_vec(),
                max: *max,
                fetch: *fetch,
            })
            .collect();
        assert_eq!(got, want, "{links:?} {counts:?}");
    }

    #[test]
    fn nothing_waits_or_nobody_can() {
        check(&[(4, 0, &[Loaded])], &[0], &[]);
        check(&[(4, 0, &[No])], &[3], &[]);
        check(&[(0, 4, &[Loaded])], &[3], &[]);
        check(&[(4, 0, &[Barred])], &[3], &[]);
        check(&[], &[3], &[]);
    }

    #[test]
    fn a_link_claims_no_more_than_waits_and_no_more_than_it_takes() {
        check(&[(4, 0, &[Loaded])], &[3], &[(0, &[0], 3, false)]);
        check(&[(4, 0, &[Loaded])], &[9], &[(0, &[0], 4, false)]);
    }

    #[test]
    fn the_loaded_come_before_the_cached_and_the_idle_before_the_busy() {
        check(&[(1, 0, &[Cached]), (1, 3, &[Loaded])], &[1], &[(1, &[0], 1, false)]);
        check(&[(2, 2, &[Loaded]), (2, 0, &[Loaded])], &[1], &[(1, &[0], 1, false)]);
        check(&[(2, 0, &[Loaded]), (2, 0, &[Loaded])], &[2], &[(0, &[0], 1, false), (1, &[0], 1, false)]);
        check(&[(1, 0, &[Cached]), (1, 3, &[Loaded])], &[2], &[(0, &[0], 1, false), (1, &[0], 1, false)]);
    }

    #[test]
    fn a_claim_names_all_that_the_link_can_do_so_that_the_store_picks_the_most_urgent() {
        check(&[(1, 0, &[Loaded, Cached, No])], &[5, 1, 1], &[(0, &[0, 1], 1, false)]);
    }

    #[test]
    fn a_model_that_nobody_has_is_fetched_by_one_link_for_one_task() {
        check(&[(1, 0, &[Fetch]), (4, 0, &[Fetch])], &[9], &[(1, &[0], 1, true)]);
        check(&[(1, 0, &[Fetch]), (0, 4, &[Loaded])], &[9], &[]);
        check(&[(1, 0, &[Fetch]), (1, 4, &[Barred])], &[9], &[]);
        check(&[(2, 0, &[Fetch, Loaded])], &[1, 5], &[(0, &[0], 1, true), (0, &[1], 1, false)]);
        let mut lines = waiting(&[9]);
        lines[0].fetching = true;
        assert!(plan(&[Candidate { free: 4, busy: 0, fits: vec![Fetch] }], &lines).is_empty());
    }

    proptest! {
        #[test]
        fn no_plan_breaks_a_bound_and_no_work_is_left_that_a_free_link_could_do(
            links in prop::collection::vec(
                (0usize..5, 0usize..5, prop::collection::vec(prop::sample::select(vec![No, Fetch, Barred, Cached, Loaded]), 3)),
                0..6,
            ),
            counts in prop::collection::vec(0usize..8, 3),
        ) {
            let candidates: Vec<Candidate> =
                links.into_iter().map(|(free, busy, fits)| Candidate { free, busy, fits }).collect();
            let lines = waiting(&counts);
            let plans = plan(&candidates, &lines);
            let mut taken = vec![0; candidates.len()];
            for plan in &plans {
                prop_assert!(plan.max > 0 && !plan.wants.is_empty());
                taken[plan.candidate] += plan.max;
                for want in &plan.wants {
                    let fit = candidates[plan.candidate].fits[*want];
                    prop_assert!(counts[*want] > 0);
                    let is_able = if plan.fetch { fit == Fetch } else { fit >= Cached };
                    prop_assert!(is_able, "{:?} for {:?}", fit, plan);
                }
            }
            for (candidate, taken) in candidates.iter().zip(&taken) {
                prop_assert!(*taken <= candidate.free);
            }
            prop_assert!(plans.iter().map(|plan| plan.max).sum::<usize>() <= counts.iter().sum());
            for (candidate, taken) in candidates.iter().zip(&taken).filter(|(candidate, taken)| **taken < candidate.free) {
                for (index, count) in counts.iter().enumerate().filter(|(index, _)| candidate.fits[*index] >= Cached) {
                    let given: usize = plans.iter().filter(|plan| plan.wants.contains(&index)).map(|plan| plan.max).sum();
                    prop_assert!(given >= *count, "{taken} of {} taken, {given} of {count} given", candidate.free);
                }
            }
        }
    }
}
