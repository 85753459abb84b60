//! Writing text, but for the model itself: a conversation becomes a prompt ([`chat`]), logits become tokens ([`sampling`]), tokens
//! become text as they come ([`text`]), and the text ends where a caller said so ([`stop`]). [`language`] is what a model brings for it.
//! Pure: never a device, a clock or a queue.

pub mod chat;
pub mod language;
pub mod sampling;
pub mod stop;
pub mod text;
