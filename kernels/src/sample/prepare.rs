//! What is done to logits before anything is chosen: mask, bias, penalties. Checked parameters come in, logits are changed in place. Every
//! step is one operation of f32 after the other, the same on every machine.

use super::{History, Params};

/// Tokens of a mask's word.
const WORD: usize = u32::BITS as usize;

/// Steps 1 to 4 of [`super::sample`].
pub(super) fn prepare(logits: &mut [f32], params: &Params<'_>, history: &History) {
    if let Some(allowed) = params.allowed {
        for (x, word) in logits.chunks_mut(WORD).zip(allowed) {
            forbid(x, *word);
        }
    }
    for (token, bias) in params.bias {
        logits[*token as usize] += bias;
    }
    if !params.has_penalties() {
        return;
    }
    let &Params { repetition_penalty, presence_penalty, frequency_penalty, .. } = params;
    for seen in history.seen() {
        let x = &mut logits[seen.token as usize];
        *x = if *x > 0.0 { *x / repetition_penalty } else { *x * repetition_penalty };
        if seen.written > 0 {
            *x -= frequency_penalty * seen.written as f32 + presence_penalty;
        }
    }
}

/// Forbids the tokens of a word whose bits are 0.
fn forbid(x: &mut [f32], allowed: u32) {
    match allowed {
        u32::MAX => {}
        0 => x.fill(f32::NEG_INFINITY),
        _ => {
            for (i, x) in x.iter_mut().enumerate() {
                // Always written, so that nothing is guessed about a bit.
                *x = if allowed >> i & 1 == 1 { *x } else { f32::NEG_INFINITY };
            }
        }
    }
}

/// The first token whose logit is NaN or +∞.
pub(super) fn unusable(logits: &[f32]) -> Option<(u32, f32)> {
    let place = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY)?;
    Some((place as u32, logits[place]))
}
