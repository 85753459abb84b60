//! The ledger against a plain account of who holds what and which text is where, and its promises one by one.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

impl Blocks {
    /// One whose hash is so weak that different texts often have the same.
    pub(in crate::generate) fn with_collisions(total: u32, block_tokens: usize) -> Self {
        Self { hash: |previous, tokens| hash(previous, tokens) & 3, ..Self::new(total, block_tokens) }
    }

    /// Holders of a block, and whether it is sealed.
    pub(in crate::generate) fn state(&self, block: BlockId) -> (u32, bool) {
        let slot = &self.slots[block as usize];
        (slot.holders, slot.is_sealed)
    }

    /// Panics unless every block is in exactly one state, and held by exactly those tables that name it.
    pub(in crate::generate) fn assert_whole<'a>(&self, tables: impl Iterator<Item = &'a Table>) {
        let mut holders = vec![0; self.slots.len()];
        for table in tables {
            let mut parent = NONE;
            for (at, &block) in table.blocks.iter().enumerate() {
                holders[block as usize] += 1;
                let slot = &self.slots[block as usize];
                assert_eq!(slot.is_sealed, at < table.sealed, "block {block} at {at} of {table:?}");
                if slot.is_sealed {
                    assert_eq!((slot.parent, slot.hash), (parent, table.hashes[at]));
                } else {
                    assert_eq!(slot.holders, 1, "only sealed blocks are shared");
                }
                parent = block;
            }
        }
        let mut age = HashMap::new();
        let mut next = self.oldest;
        let mut last = NONE;
        while next != NONE {
            let slot = &self.slots[next as usize];
            assert!(slot.is_sealed && slot.holders == 0 && slot.before == last);
            assert!(age.insert(next, age.len()).is_none());
            (last, next) = (next, slot.behind);
        }
        assert_eq!((age.len(), last), (self.cached, self.newest));
        let mut is_free = vec![false; self.slots.len()];
        for &block in &self.free {
            assert!(!std::mem::replace(&mut is_free[block as usize], true), "{block} is free twice");
        }
        let mut sealed = 0;
        for (block, slot) in (0..).zip(&self.slots) {
            assert_eq!(slot.holders, holders[block as usize], "holders of {block}");
            let states = [slot.holders > 0, age.contains_key(&block), is_free[block as usize]];
            assert_eq!(states.iter().filter(|state| **state).count(), 1, "{block} is in {states:?}");
            if slot.is_sealed {
                sealed += 1;
                assert_eq!(self.sealed.get(&slot.hash), Some(&block));
                let is_older = |parent| age.get(&block).zip(age.get(&parent)).is_none_or(|(own, parent)| own < parent);
                let parent = slot.parent;
                assert!(parent == NONE || (self.slots[parent as usize].is_sealed && is_older(parent)));
            }
        }
        assert_eq!(self.sealed.len(), sealed);
        let Figures { total, used, cached, free } = self.figures();
        assert_eq!(used + cached + free, total);
        assert_eq!(used, holders.iter().filter(|holders| **holders > 0).count());
    }
}

/// A sequence in these tests: its table, and how far it is computed.
struct Text(Table, Vec<u32>, usize);

impl Text {
    fn new(salt: u64, tokens: &[u32]) -> Self {
        Self(Table::new(salt), tokens.to_vec(), 0)
    }

    /// Shares what there is and returns how many tokens that is.
    fn adopt(&mut self, blocks: &mut Blocks) -> usize {
        let taken = blocks.adopt(&mut self.0, &self.1, self.2);
        if taken > 0 {
            self.2 = self.0.sealed() * blocks.block_tokens();
        }
        taken * blocks.block_tokens()
    }

    /// Computes the first so many tokens. Returns false when there is no room.
    fn compute(&mut self, blocks: &mut Blocks, tokens: usize) -> bool {
        let has_room = blocks.grow(&mut self.0, tokens);
        if has_room {
            self.2 = self.2.max(tokens);
            blocks.seal(&mut self.0, &self.1, self.2);
        }
        has_room
    }
}

/// A text of `earlier` is computed and released; of `later` so many tokens are found.
fn check(earlier: (u64, &[u32]), later: (u64, &[u32]), want: usize) {
    let mut blocks = Blocks::new(8, 2);
    let mut text = Text::new(earlier.0, earlier.1);
    assert!(text.compute(&mut blocks, earlier.1.len()));
    blocks.release(&mut text.0);
    let mut text = Text::new(later.0, later.1);
    let prefix = blocks.prefix(&mut text.0, &text.1);
    assert_eq!((prefix.blocks * 2, prefix.cached * 2), (want, want));
    assert_eq!(text.adopt(&mut blocks), want);
    assert_eq!(blocks.prefix(&mut text.0, &text.1).cached, 0, "it is held now");
    blocks.assert_whole([&text.0].into_iter());
}

#[test]
fn full_blocks_of_a_common_beginning_are_shared_but_never_the_last_token() {
    check((0, &[1, 2, 3, 4, 5]), (0, &[1, 2, 3, 4, 5]), 4);
    check((0, &[1, 2, 3, 4]), (0, &[1, 2, 3, 4]), 2);
    check((0, &[1, 2, 3, 4]), (0, &[1, 2, 3, 4, 9, 9]), 4);
    check((0, &[1, 2, 3]), (0, &[1, 2, 3, 4, 5]), 2);
    check((0, &[1, 2, 3, 4]), (0, &[1, 9, 3, 4, 5]), 0);
    // The same block behind another one is another text.
    check((0, &[1, 2, 3, 4]), (0, &[3, 4, 3, 4, 5]), 0);
    check((0, &[1, 2, 1, 2]), (0, &[1, 2, 1, 2, 1, 2]), 4);
}

#[test]
fn different_salts_share_nothing() {
    check((1, &[1, 2, 3, 4, 5]), (1, &[1, 2, 3, 4, 5]), 4);
    check((1, &[1, 2, 3, 4, 5]), (2, &[1, 2, 3, 4, 5]), 0);
}

#[test]
fn what_is_used_least_recently_makes_room_its_end_first() {
    let mut blocks = Blocks::new(4, 2);
    let texts = [[1, 1, 1, 1], [2, 2, 2, 2]];
    for tokens in texts {
        let mut text = Text::new(0, &tokens);
        assert!(text.compute(&mut blocks, 4));
        blocks.release(&mut text.0);
    }
    assert_eq!(blocks.figures(), Figures { total: 4, used: 0, cached: 4, free: 0 });
    let mut other = Text::new(0, &[3, 3, 3]);
    assert!(other.compute(&mut blocks, 1));
    let found = texts.map(|text| blocks.prefix(&mut Table::new(0), &[text[0]; 5]).blocks);
    assert_eq!(found, [1, 2]);
    assert!(other.compute(&mut blocks, 3));
    let found = texts.map(|text| blocks.prefix(&mut Table::new(0), &[text[0]; 5]).blocks);
    assert_eq!(found, [0, 2]);
}

#[test]
fn a_table_grows_whole_or_not_at_all() {
    let mut blocks = Blocks::new(3, 2);
    let mut one = Table::new(0);
    assert!(blocks.grow(&mut one, 3) && blocks.grow(&mut one, 4));
    let mut other = Table::new(0);
    assert_eq!((blocks.available(), blocks.room(&one), blocks.room(&other)), (1, 6, 2));
    assert!(!blocks.grow(&mut other, 3));
    assert_eq!((blocks.available(), other.blocks().len()), (1, 0));
    blocks.release(&mut one);
    assert!(blocks.grow(&mut other, 6));
}

#[test]
fn a_text_that_two_compute_at_a_time_takes_its_memory_once() {
    let mut blocks = Blocks::new(8, 2);
    let [mut one, mut other] = [Text::new(0, &[1, 2, 3, 4, 5]), Text::new(0, &[1, 2, 3, 4, 6])];
    assert!(one.compute(&mut blocks, 1) && other.compute(&mut blocks, 5));
    assert!(one.compute(&mut blocks, 5));
    assert_eq!(one.0.blocks()[..2], other.0.blocks()[..2]);
    assert_eq!(blocks.figures().used, 4);
    blocks.assert_whole([&one.0, &other.0].into_iter());
}

#[test]
fn a_begun_block_is_given_up_for_one_that_is_whole() {
    let mut blocks = Blocks::new(8, 2);
    let [mut one, mut other] = [Text::new(0, &[1, 2, 3, 4, 5]), Text::new(0, &[1, 2, 3, 4, 6])];
    assert!(one.compute(&mut blocks, 3) && other.compute(&mut blocks, 4));
    assert_eq!((one.adopt(&mut blocks), one.2), (2, 4));
    assert_eq!(blocks.figures().used, 2);
    blocks.assert_whole([&one.0, &other.0].into_iter());
}

/// What a test does to the ledger, with texts chosen by number.
#[derive(Debug, Clone)]
enum Act {
    Begin { salt: u64, tokens: Vec<u32> },
    Adopt(prop::sample::Index),
    Compute(prop::sample::Index, usize),
    Release(prop::sample::Index),
}

fn act() -> impl Strategy<Value = Act> {
    let text = any::<prop::sample::Index>;
    prop_oneof![
        3 => (0u64..2, prop::collection::vec(0u32..2, 1..14)).prop_map(|(salt, tokens)| Act::Begin { salt, tokens }),
        3 => text().prop_map(Act::Adopt),
        6 => (text(), 1usize..8).prop_map(|(text, tokens)| Act::Compute(text, tokens)),
        2 => text().prop_map(Act::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done, every block is accounted for, and each position of each table holds what its text computed there.
    #[test]
    fn blocks_are_conserved_and_hold_what_their_texts_computed(
        total in 1u32..12, block_tokens in 1usize..4, collides: bool, acts in prop::collection::vec(act(), 1..120),
    ) {
        let new = if collides { Blocks::with_collisions } else { Blocks::new };
        let mut blocks = new(total, block_tokens);
        // By block and position in it: the salt and the text up to there.
        let mut memory: HashMap<(BlockId, usize), (u64, Vec<u32>)> = HashMap::new();
        let mut texts: Vec<Text> = Vec::new();
        for act in acts {
            match act {
                Act::Begin { salt, tokens } => texts.push(Text::new(salt, &tokens)),
                _ if texts.is_empty() => {}
                Act::Adopt(which) => {
                    let at = which.index(texts.len());
                    let before = texts[at].2;
                    texts[at].adopt(&mut blocks);
                    prop_assert!(texts[at].2 >= before && texts[at].2 < texts[at].1.len().max(before + 1));
                }
                Act::Compute(which, more) => {
                    let at = which.index(texts.len());
                    let text = &mut texts[at];
                    let (from, to) = (text.2, (text.2 + more).min(text.1.len()));
                    let available = blocks.available();
                    if blocks.grow(&mut text.0, to) {
                        for position in from..to {
                            let block = text.0.blocks()[position / block_tokens];
                            prop_assert_eq!(blocks.state(block), (1, false), "written to while shared");
                            memory.insert((block, position % block_tokens), (text.0.salt, text.1[..=position].to_vec()));
                        }
                        text.compute(&mut blocks, to);
                    } else {
                        prop_assert!(blocks.needed(to) > text.0.blocks().len() + available);
                    }
                }
                Act::Release(which) => {
                    let mut text = texts.swap_remove(which.index(texts.len()));
                    blocks.release(&mut text.0);
                    prop_assert!(text.0.blocks().is_empty());
                }
            }
            blocks.assert_whole(texts.iter().map(|text| &text.0));
            for Text(table, tokens, computed) in &texts {
                for position in 0..*computed {
                    let block = table.blocks()[position / block_tokens];
                    let found = &memory[&(block, position % block_tokens)];
                    prop_assert_eq!(found, &(table.salt, tokens[..=position].to_vec()));
                }
            }
        }
        for text in &mut texts {
            blocks.release(&mut text.0);
        }
        prop_assert_eq!(blocks.available(), total as usize);
    }
}
