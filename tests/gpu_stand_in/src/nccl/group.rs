//! Groups: collectives called between `ncclGroupStart` and `ncclGroupEnd` start at the end of the group. As with NCCL,
//! an event recorded before the end does not wait for them.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use super::{
    communicator::{Communicator, Launch},
    result::{
        Failure,
        NcclResult::{self, *},
        to_code,
    },
};

/// Collectives deferred until the end of the group, by communicator.
type Deferred = Vec<(Arc<Communicator>, Vec<Launch>)>;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static DEFERRED: RefCell<Deferred> = RefCell::default();
}

/// Launches a collective immediately or, inside a group, at its end.
pub(crate) fn launch(communicator: Arc<Communicator>, launch: Launch) -> NcclResult {
    if DEPTH.get() == 0 {
        return communicator.launch(vec![launch]);
    }
    DEFERRED.with_borrow_mut(|deferred| {
        match deferred.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &communicator)) {
            Some((_, launches)) => launches.push(launch),
            None => deferred.push((communicator, vec![launch])),
        }
    });
    Success
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> NcclResult {
    DEPTH.set(DEPTH.get() + 1);
    Success
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> NcclResult {
    let Some(depth) = DEPTH.get().checked_sub(1) else {
        return to_code(Err(Failure::new(InvalidUsage, "ncclGroupEnd without ncclGroupStart")));
    };
    DEPTH.set(depth);
    if depth > 0 {
        return Success;
    }
    let launched = DEFERRED.take().into_iter().map(|(communicator, launches)| communicator.launch(launches));
    let results: Vec<NcclResult> = launched.collect();
    let failed = results.iter().find(|result| !matches!(result, Success | InProgress));
    *failed.or_else(|| results.iter().find(|result| **result == InProgress)).unwrap_or(&Success)
}
