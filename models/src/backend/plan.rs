//! Lengths of sequences go in; groups to run as padded batches come out, so that little of the work is padding. Pure.

/// What a group costs and how large it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// Padded tokens of a group at most; a longer sequence is a group of its own. Bounds the working memory.
    pub group_tokens_max: usize,
    /// What starting one more group costs, in tokens of computation.
    pub group_overhead: usize,
}

/// One padded batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Positions in the given lengths.
    pub members: Vec<usize>,
    /// The longest member.
    pub longest: usize,
}

/// Splits sequences into groups of least total cost, where a group costs its overhead plus its padded tokens. Groups
/// come with the longest first, so that threads which share them finish together.
///
/// Sorted by length, some best split is into runs; which one is found by the usual recurrence over their ends, in
/// time proportional to the number of sequences times the largest group.
pub fn plan(lengths: &[usize], costs: Costs) -> Vec<Group> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    // best[end] = (least cost of the first `end`, where the last group starts)
    let mut best = vec![(0usize, 0usize)];
    for end in 1..=order.len() {
        let mut least = (usize::MAX, end - 1);
        for start in (0..end).rev() {
            let padded = (end - start).saturating_mul(lengths[order[start]]);
            if padded > costs.group_tokens_max && end - start > 1 {
                break;
            }
            let cost = best[start].0.saturating_add(padded).saturating_add(costs.group_overhead);
            if cost < least.0 {
                least = (cost, start);
            }
        }
        best.push(least);
    }
    let mut groups = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let start = best[end].1;
        groups.push(Group { members: order[start..end].to_vec(), longest: lengths[order[start]] });
        end = start;
    }
    groups.reverse();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COSTS: Costs = Costs { group_tokens_max: 64, group_overhead: 8 };

    fn check(lengths: &[usize], want: &[&[usize]]) {
        let groups = plan(lengths, COSTS);
        let lengths_of = |group: &Group| group.members.iter().map(|i| lengths[*i]).collect::<Vec<_>>();
        assert_eq!(groups.iter().map(lengths_of).collect::<Vec<_>>(), want, "{lengths:?}");
    }

    #[test]
    fn like_goes_with_like() {
        check(&[], &[]);
        check(&[5], &[&[5]]);
        check(&[4, 4, 4], &[&[4, 4, 4]]);
        check(&[2, 30, 2, 30], &[&[30, 30], &[2, 2]]);
        check(&[10, 9, 8], &[&[10, 9, 8]]);
        check(&[100, 1], &[&[100], &[1]]);
        check(&[32, 32, 32], &[&[32, 32], &[32]]);
    }

    proptest! {
        #[test]
        fn every_sequence_is_in_one_group_that_holds_it(lengths in proptest::collection::vec(1usize..90, 0..60)) {
            let groups = plan(&lengths, COSTS);
            let mut seen: Vec<usize> = groups.iter().flat_map(|g| g.members.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for group in &groups {
                prop_assert_eq!(Some(group.longest), group.members.iter().map(|i| lengths[*i]).max());
                prop_assert!(group.members.len() == 1 || group.members.len() * group.longest <= 64);
            }
        }

        #[test]
        fn no_split_is_worse_than_one_by_one(lengths in proptest::collection::vec(1usize..90, 0..60)) {
            let cost: usize = plan(&lengths, COSTS).iter().map(|g| g.members.len() * g.longest + 8).sum();
            prop_assert!(cost <= lengths.iter().map(|l| l + 8).sum());
        }
    }
}
