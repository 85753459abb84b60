//! The ledger of one model's KV cache: tokens of sequences go in, block tables come out. It knows which block belongs to whom, which
//! may be shared and which is free. Pure: it holds no keys and values, looks at no clock and chooses no victim.
//!
//! # Sharing
//! A block is *sealed* when all its positions are computed. A sealed block is found again by a hash over the hash of the block before it and
//! its own tokens; the first block's hash begins with the caller's salt. A hash only proposes: a block is shared when its tokens and
//! the block before it (for the first, the salt) are the same, so that by induction the whole text before it is. A collision costs a
//! miss, and never mixes two callers.
//!
//! Only sealed blocks are shared, and nothing is ever written into one: a sequence writes behind what it has computed. So copying on
//! write is not needed. The last token of a prompt always runs, because its logits are wanted; its block is never taken from the cache.
//!
//! # States of a block
//! ```text
//! free ──grow──► used ──release──► free             not sealed
//!                 │ seal ▲ adopt
//!                 ▼      │
//!                used ──release──► cached ──grow, when no free one is left──► used (as another)
//! ```
//! Whoever holds a block holds all before it, and a table is released from its end. So among the cached blocks, which go by least
//! recent use, one always goes before the one it continues, and what is found by its hash is whole to its beginning.

use std::collections::HashMap;

pub use models::generate::BlockId;

/// No block: the end of a list, and what comes before the first block of a text.
const NONE: BlockId = BlockId::MAX;

/// Who has which block.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Blocks {
    block_tokens: usize,
    slots: Vec<Slot>,
    /// The tokens of sealed blocks, `[total, block_tokens]`.
    tokens: Vec<u32>,
    free: Vec<BlockId>,
    /// Sealed blocks by hash. Of two with the same hash only the first is here, and the other is not sealed.
    sealed: HashMap<u64, BlockId>,
    /// Sealed blocks that nobody holds, the least recently used first: a list through [`Slot::before`] and [`Slot::behind`].
    oldest: BlockId,
    newest: BlockId,
    cached: usize,
    hash: fn(u64, &[u32]) -> u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Tables that hold it.
    holders: u32,
    is_sealed: bool,
    /// When it is sealed: its hash, the block it continues, and for a first block the salt.
    hash: u64,
    parent: BlockId,
    salt: u64,
    /// When it is cached: its neighbours in order of use.
    before: BlockId,
    behind: BlockId,
}

/// The blocks of one sequence, in the order of its tokens. Given back with [`Blocks::release`], and with nothing else.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Table {
    salt: u64,
    blocks: Vec<BlockId>,
    /// So many of the first blocks are sealed.
    sealed: usize,
    /// Hashes of the first full blocks of the sequence's tokens, as far as they were needed. They outlive the blocks.
    hashes: Vec<u64>,
}

/// How many blocks are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// All.
    pub total: usize,
    /// Held by sequences; shared ones count once.
    pub used: usize,
    /// Held by nobody, and kept for prompts that begin alike.
    pub cached: usize,
    /// Empty.
    pub free: usize,
}

/// What the cache holds of a text's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Blocks of it.
    pub blocks: usize,
    /// Those of them that nobody holds.
    pub cached: usize,
}

impl Table {
    /// An empty one. Only tables with the same salt share blocks.
    pub fn new(salt: u64) -> Self {
        Self { salt, blocks: Vec::new(), sealed: 0, hashes: Vec::new() }
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// How many of the first are sealed.
    pub fn sealed(&self) -> usize {
        self.sealed
    }

    /// Whether both would have the same block behind their first `sealed` ones, if it held the same tokens.
    pub fn agrees(&self, other: &Table, sealed: usize) -> bool {
        match sealed.checked_sub(1) {
            Some(last) => self.sealed > last && other.sealed > last && self.blocks[last] == other.blocks[last],
            None => self.salt == other.salt,
        }
    }

    fn last_sealed(&self) -> BlockId {
        self.sealed.checked_sub(1).map_or(NONE, |last| self.blocks[last])
    }
}

impl Blocks {
    /// So many blocks of so many tokens each, all free.
    ///
    /// # Panics
    /// When a block holds no token: that is a mistake of the engine that says so.
    pub fn new(total: u32, block_tokens: usize) -> Self {
        assert!(block_tokens > 0 && total < NONE, "{total} blocks of {block_tokens} tokens");
        let slot = Slot { holders: 0, is_sealed: false, hash: 0, parent: NONE, salt: 0, before: NONE, behind: NONE };
        Self {
            block_tokens,
            slots: vec![slot; total as usize],
            tokens: vec![0; total as usize * block_tokens],
            // The first is taken first.
            free: (0..total).rev().collect(),
            sealed: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            cached: 0,
            hash,
        }
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that so many tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that a table could get: free and cached ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// How many are in which state.
    pub fn figures(&self) -> Figures {
        let (total, free, cached) = (self.slots.len(), self.free.len(), self.cached);
        Figures { total, used: total - free - cached, cached, free }
    }

    /// What [`adopt`](Self::adopt) would take for an empty table.
    pub fn prefix(&self, table: &mut Table, tokens: &[u32]) -> Prefix {
        let mut found = Prefix { blocks: 0, cached: 0 };
        let mut parent = NONE;
        while let Some(block) = self.find_next(table, parent, found.blocks, tokens) {
            found.blocks += 1;
            found.cached += usize::from(self.slots[block as usize].holders == 0);
            parent = block;
        }
        found
    }

    /// Takes sealed blocks that continue the table's own, as far as the cache has them and the last token still is to run.
    /// What the table had behind its sealed blocks is freed when there are any. Returns how many it took: when any, the sequence is
    /// computed as far as its table is sealed.
    ///
    /// Takes none while blocks of the table wait to be sealed.
    pub fn adopt(&mut self, table: &mut Table, tokens: &[u32], computed: usize) -> usize {
        if computed >= (table.sealed + 1) * self.block_tokens {
            return 0;
        }
        let before = table.sealed;
        loop {
            let (parent, at) = (table.last_sealed(), table.sealed);
            let Some(block) = self.find_next(table, parent, at, tokens) else { break };
            for unsealed in table.blocks.drain(table.sealed..).rev() {
                self.let_go(unsealed);
            }
            self.hold(block);
            table.blocks.push(block);
            table.sealed += 1;
        }
        table.sealed - before
    }

    /// Gives the table blocks until it has room for so many tokens. Returns false, and gives none, when there are too few.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> bool {
        let more = self.needed(tokens).saturating_sub(table.blocks.len());
        if more > self.available() {
            return false;
        }
        for _ in 0..more {
            let block = self.free.pop().unwrap_or_else(|| self.evict());
            self.slots[block as usize].holders = 1;
            table.blocks.push(block);
        }
        true
    }

    /// What would be if these tables were released: how many blocks more would be available, and what the cache would have of a text's
    /// beginning, as [`prefix`](Self::prefix) says.
    pub fn if_released<'a>(
        &mut self,
        released: impl Iterator<Item = &'a Table> + Clone,
        table: &mut Table,
        tokens: &[u32],
    ) -> (usize, Prefix) {
        let mut more = 0;
        for block in released.clone().flat_map(Table::blocks) {
            let slot = &mut self.slots[*block as usize];
            slot.holders -= 1;
            more += usize::from(slot.holders == 0);
        }
        let prefix = self.prefix(table, tokens);
        for block in released.flat_map(Table::blocks) {
            self.slots[*block as usize].holders += 1;
        }
        (more, prefix)
    }

    /// How many tokens the table could hold with every block that is available.
    pub fn room(&self, table: &Table) -> usize {
        (table.blocks.len() + self.available()) * self.block_tokens
    }

    /// Seals the table's blocks that are computed, so that others find them. One that another table has sealed meanwhile is
    /// replaced by that one and freed, so that a text takes its memory once.
    pub fn seal(&mut self, table: &mut Table, tokens: &[u32], computed: usize) {
        while (table.sealed + 1) * self.block_tokens <= computed {
            let (at, parent) = (table.sealed, table.last_sealed());
            let own = table.blocks[at];
            let hash = self.hash_of(table, at, tokens);
            let of_block = self.range(at);
            match self.sealed.get(&hash).copied() {
                None => {
                    self.sealed.insert(hash, own);
                    let into = self.range(own as usize);
                    self.tokens[into].copy_from_slice(&tokens[of_block]);
                    let slot = &mut self.slots[own as usize];
                    (slot.is_sealed, slot.hash, slot.parent, slot.salt) = (true, hash, parent, table.salt);
                }
                Some(found) if self.is_same(found, parent, table.salt, &tokens[of_block]) => {
                    self.hold(found);
                    self.let_go(own);
                    table.blocks[at] = found;
                }
                // Another text with this hash: the block stays private, and so do those behind it.
                Some(_) => return,
            }
            table.sealed += 1;
        }
    }

    /// Takes all blocks back. Sealed ones stay cached until their room is needed.
    pub fn release(&mut self, table: &mut Table) {
        for block in table.blocks.drain(..).rev() {
            self.let_go(block);
        }
        table.sealed = 0;
    }

    /// The sealed block behind `parent` that holds the tokens' block number `at`, unless the last token is in it.
    fn find_next(&self, table: &mut Table, parent: BlockId, at: usize, tokens: &[u32]) -> Option<BlockId> {
        if (at + 1) * self.block_tokens >= tokens.len() {
            return None;
        }
        let hash = self.hash_of(table, at, tokens);
        let block = *self.sealed.get(&hash)?;
        self.is_same(block, parent, table.salt, &tokens[self.range(at)]).then_some(block)
    }

    /// Whether a sealed block holds these tokens behind the same text.
    fn is_same(&self, block: BlockId, parent: BlockId, salt: u64, tokens: &[u32]) -> bool {
        let slot = &self.slots[block as usize];
        let has_same_past = slot.parent == parent && (parent != NONE || slot.salt == salt);
        has_same_past && self.tokens[self.range(block as usize)] == *tokens
    }

    /// The hash of the tokens to the end of block number `at`, all of which are there.
    fn hash_of(&self, table: &mut Table, at: usize, tokens: &[u32]) -> u64 {
        while table.hashes.len() <= at {
            let next = table.hashes.len();
            let previous = table.hashes.last().copied().unwrap_or(table.salt);
            table.hashes.push((self.hash)(previous, &tokens[self.range(next)]));
        }
        table.hashes[at]
    }

    fn range(&self, at: usize) -> std::ops::Range<usize> {
        at * self.block_tokens..(at + 1) * self.block_tokens
    }

    fn hold(&mut self, block: BlockId) {
        if self.slots[block as usize].holders == 0 {
            self.unlink(block);
        }
        self.slots[block as usize].holders += 1;
    }

    fn let_go(&mut self, block: BlockId) {
        let newest = self.newest;
        let slot = &mut self.slots[block as usize];
        slot.holders -= 1;
        if slot.holders > 0 {
            return;
        }
        if !slot.is_sealed {
            self.free.push(block);
            return;
        }
        (slot.before, slot.behind) = (newest, NONE);
        match newest {
            NONE => self.oldest = block,
            _ => self.slots[newest as usize].behind = block,
        }
        self.newest = block;
        self.cached += 1;
    }

    /// Takes the least recently used block out of the cache.
    fn evict(&mut self) -> BlockId {
        let block = self.oldest;
        self.unlink(block);
        let slot = &mut self.slots[block as usize];
        slot.is_sealed = false;
        self.sealed.remove(&slot.hash);
        block
    }

    fn unlink(&mut self, block: BlockId) {
        let Slot { before, behind, .. } = self.slots[block as usize];
        match before {
            NONE => self.oldest = behind,
            _ => self.slots[before as usize].behind = behind,
        }
        match behind {
            NONE => self.newest = before,
            _ => self.slots[behind as usize].before = before,
        }
        self.cached -= 1;
    }
}

/// Mixes tokens into a hash. It spreads, and no more is asked of it, for tokens are compared: who forges a text with the hash of
/// another one keeps that from being shared while its own is cached, and learns nothing.
fn hash(previous: u64, tokens: &[u32]) -> u64 {
    // 2⁶⁴ over the golden ratio, odd: its multiples are spread evenly.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    tokens.iter().fold((previous ^ ODD).wrapping_mul(ODD), |hash, &token| {
        let mixed = (hash ^ u64::from(token)).wrapping_mul(ODD);
        mixed ^ (mixed >> 32)
    })
}

#[cfg(test)]
mod tests;
