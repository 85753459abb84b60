//! What the rooms share: the store, who is connected, what waits, who watches. Wired once at start; holds no logic of its
//! own. The verbs on tasks are in `tasks/`, on nodes in `nodes/`.

use crate::metrics::Metrics;
use crate::nodes::enrol::Enrolment;
use crate::nodes::presence::Presence;
use crate::options::Options;
use crate::registry::Registry;
use crate::schedule::board::Board;
use crate::store::Store;
use crate::tasks::hub::Hub;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) options: Options,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) enrolment: Enrolment,
    pub(crate) presence: Presence,
    pub(crate) board: Board,
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    /// Cancelled when the coordinator stops.
    pub(crate) closing: CancellationToken,
    /// Everything that runs beside requests; waited for at the end, before the store closes.
    pub(crate) tracker: TaskTracker,
    pub(crate) started_ms: i64,
}
