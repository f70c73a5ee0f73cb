//! The C functions of the collectives, which check, count and log calls before they are put on a stream.

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_void},
    sync::{Arc, Mutex},
};

use super::{
    call_log,
    collective::{
        Call,
        Operation::{self, *},
    },
    communicator::{Communicator, Launch, find},
    datatype::{DataType, Reduction},
    faults::{Fault, Place},
    group,
    result::{
        Failure,
        NcclResult::{self, *},
        record_failure,
    },
};
use crate::{cuda::stream::Stream, environment::settings, lock};

/// Number of collectives that each rank of this process has called.
static CALLS: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

/// The unchecked arguments of a collective.
struct Arguments {
    operation: Operation,
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    reduction: Option<u32>,
    root: Option<c_int>,
    communicator: usize,
    stream: usize,
}

impl Arguments {
    fn check(&self, communicator: &Communicator) -> Result<Call, Failure> {
        let invalid = |message: String| Failure::new(InvalidArgument, format!("{}: {message}", self.operation.name()));
        let kind = DataType::from_code(self.kind).ok_or_else(|| invalid(format!("unknown type {}", self.kind)))?;
        let reduction = |code| Reduction::from_code(code).ok_or_else(|| invalid(format!("unknown reduction {code}")));
        let reduction = self.reduction.map(reduction).transpose()?;
        if reduction.is_some() && !kind.can_be_reduced() {
            return Err(invalid(format!("the stand-in cannot reduce {}", kind.name())));
        }
        let root = |root: c_int| usize::try_from(root).ok().filter(|root| *root < communicator.world);
        let root = self.root.map(|code| root(code).ok_or_else(|| invalid(format!("no rank {code}")))).transpose()?;
        let is_root = root.is_none_or(|root| root == communicator.rank);
        let needs_send = self.operation == Reduce || is_root;
        let needs_receive = self.operation == Broadcast || is_root;
        if self.elements > 0 && (needs_send && self.send.is_null() || needs_receive && self.receive.is_null()) {
            return Err(invalid("a null pointer".to_owned()));
        }
        let (send, receive) = (self.send.expose_provenance(), self.receive.expose_provenance());
        Ok(Call { operation: self.operation, send, receive, elements: self.elements, kind, reduction, root })
    }

    fn log(&self, rank: usize, number: u64, call: &Call) {
        let quoted = |name: String| format!("\"{name}\"");
        let or_null = |text: Option<String>| text.unwrap_or_else(|| "null".to_owned());
        call_log::log(
            rank,
            &format!(
                "\"event\":\"call\",\"call\":{number},\"operation\":\"{}\",\"elements\":{},\"type\":\"{}\",\
                 \"reduction\":{},\"root\":{},\"stream\":{},\"in_place\":{}",
                self.operation.name(),
                call.elements,
                call.kind.name(),
                or_null(call.reduction.map(|how| quoted(how.name()))),
                or_null(call.root.map(|root| root.to_string())),
                self.stream,
                call.send == call.receive,
            ),
        );
    }

    fn prepare(&self) -> Result<(Arc<Communicator>, Launch), Failure> {
        let communicator = find(self.communicator)?;
        communicator.require_ready()?;
        let call = self.check(&communicator)?;
        let stream = Stream::find(self.stream).ok_or_else(|| Failure::new(InvalidArgument, "no such stream"))?;
        let number = {
            let mut calls = lock(&CALLS);
            let calls = calls.entry(communicator.rank).or_insert(0);
            *calls += 1;
            *calls
        };
        self.log(communicator.rank, number, &call);
        let faults = settings().faults.as_ref().map_err(|text| Failure::new(InvalidUsage, text.as_str()))?;
        let fault = faults.at(communicator.rank, Place::Call(number));
        if fault == Some(Fault::Refuse) {
            return Err(Failure::new(UnhandledCudaError, "injected refusal"));
        }
        Ok((communicator, Launch { stream, call, fault }))
    }

    fn submit(self) -> NcclResult {
        match self.prepare() {
            Ok((communicator, launch)) => group::launch(communicator, launch),
            Err(failure) => {
                record_failure(&failure);
                failure.result
            }
        }
    }
}

// The following functions only pass their pointers on as numbers. The stream uses the memory later; as with NCCL, the
// caller must keep it until then.

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    reduction: u32,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    let reduction = Some(reduction);
    Arguments { operation: AllReduce, send, receive, elements, kind, reduction, root: None, communicator, stream }
        .submit()
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduce(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    reduction: u32,
    root: c_int,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    let (reduction, root) = (Some(reduction), Some(root));
    Arguments { operation: Reduce, send, receive, elements, kind, reduction, root, communicator, stream }.submit()
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    root: c_int,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    let root = Some(root);
    Arguments { operation: Broadcast, send, receive, elements, kind, reduction: None, root, communicator, stream }
        .submit()
}

#[unsafe(no_mangle)]
extern "C" fn ncclBcast(
    buffer: *mut c_void,
    elements: usize,
    kind: u32,
    root: c_int,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    ncclBroadcast(buffer, buffer, elements, kind, root, communicator, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    let operation = AllGather;
    Arguments { operation, send, receive, elements, kind, reduction: None, root: None, communicator, stream }.submit()
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduceScatter(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    kind: u32,
    reduction: u32,
    communicator: usize,
    stream: usize,
) -> NcclResult {
    let (operation, reduction) = (ReduceScatter, Some(reduction));
    Arguments { operation, send, receive, elements, kind, reduction, root: None, communicator, stream }.submit()
}
