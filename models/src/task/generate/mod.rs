//! Writing text, but for the model itself: a conversation becomes a prompt ([`chat`]), logits become tokens ([`sampling`]), tokens
//! become text as they come ([`text`]), and the text ends where a caller said so ([`stop`]). Where a form is demanded, only tokens are
//! chosen that keep to it ([`constraint`], [`vocabulary`]); calls of [`tools`] are found in what was written. [`language`] is what a model
//! brings for all this. Pure: never a device, a clock or a queue.

pub mod chat;
pub mod constraint;
pub mod language;
pub mod sampling;
pub mod stop;
pub mod text;
pub mod tools;
pub mod vocabulary;
