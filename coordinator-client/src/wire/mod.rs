//! Types that cross the link between a worker and a coordinator, and their encoding.

pub mod control;
pub mod digest;
pub mod frame;
pub mod id;
pub mod model;
pub mod node;
pub mod report;
pub mod state;
pub mod task;
pub mod tensor;
pub mod text;
pub mod work;

pub use control::{Ack, AckOutcome, Bye, ByeReason, Cancel, Drain, ModelRef, Ping, Settings};
pub use frame::{DecodeError, EncodeError, Frame, PROTOCOL};
pub use id::{NodeId, TaskId};
pub use report::{Failed, FailureClass, Progress, TaskResult, Timings};
pub use state::{Capabilities, Heartbeat, Hello, ModelHeld, Welcome};
pub use task::{TaskInput, TaskKind, TaskOutput, Usage};
pub use tensor::{Matrix, Tensor};
pub use text::{Piece, Written};
pub use work::{Accept, Attempt, BlobRef, Decline, DeclineReason, Offer, Packed, Payload};

/// WebSocket sub-protocol of the link.
pub const SUBPROTOCOL: &str = "neurogrid.v1";

/// Largest message on the link; what is larger goes by blob reference. Small enough that one message delays a
/// heartbeat behind it by less than a second at 100 Mbit/s.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
