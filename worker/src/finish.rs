//! After the device: its outputs go in, the reply comes out. Small outputs are finished where they are, for a thread's
//! hop would cost more; the others on the CPU pool. Knows no task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::engine::Output;
use models::task::{Pending, Pipeline, Reply};

use crate::Error;
use crate::pool::Pool;

/// Output bytes that are finished in place: about 20 µs.
const INLINE_BYTES: usize = 64 << 10;

/// Makes the reply.
///
/// # Errors
/// When the outputs are not what the model may give.
pub(crate) async fn finish(
    pool: &Pool,
    pipeline: &Arc<Pipeline>,
    pending: Pending,
    outputs: Vec<Output>,
) -> Result<(Reply, Duration), Error> {
    let started = Instant::now();
    let reply = if bytes(&outputs) <= INLINE_BYTES {
        let attempt = catch_unwind(AssertUnwindSafe(|| pipeline.finish(pending, outputs)));
        attempt.map_err(|_| Error::Internal("finishing a reply crashed".into()))??
    } else {
        let pipeline = Arc::clone(pipeline);
        pool.run(move || pipeline.finish(pending, outputs)).await??
    };
    Ok((reply, started.elapsed()))
}

fn bytes(outputs: &[Output]) -> usize {
    let of_one = |output: &Output| match output {
        Output::Vector(values) => size_of_val(values.as_slice()),
        Output::Tensors(tensors) => tensors.iter().map(|tensor| tensor.tensor.data().len()).sum(),
    };
    outputs.iter().map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::{NamedTensor, Tensor};

    #[test]
    fn outputs_are_weighed_by_their_bytes() {
        let tensor = Tensor::from_i64(vec![2], &[1, 2]).unwrap();
        let named = NamedTensor { name: "x".into(), tensor };
        assert_eq!(bytes(&[Output::Vector(vec![0.0; 3]), Output::Tensors(vec![named])]), 12 + 16);
    }
}
