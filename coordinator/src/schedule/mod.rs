//! Who gets what, when. Hints of what waits and of who is free come in, claims go to the store and offers to the links. The
//! policy is pure; the task around it sleeps until something changes, with a poll as safety net.

pub(crate) mod board;
pub(crate) mod dispatch;
pub(crate) mod policy;
pub(crate) mod reason;
