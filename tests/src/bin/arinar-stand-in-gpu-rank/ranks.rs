//! The communicator of a job and checks of its collectives.

use std::time::Instant;

use anyhow::{Context, ensure};
use cudarc::nccl::{
    result::{self, NcclStatus},
    sys::{self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t},
};

use super::{Job, POLL_INTERVAL, TIMEOUT, nccl, values};

/// A communicator of all ranks of a job.
pub(crate) struct Ranks<'a> {
    pub(crate) job: &'a Job,
    pub(crate) handle: ncclComm_t,
}

impl Job {
    /// Creates a blocking communicator, or a non-blocking one and polls until it is ready.
    pub(crate) fn ranks(&self, blocking: bool) -> anyhow::Result<Ranks<'_>> {
        let mut handle = std::ptr::null_mut();
        let (id, world, rank) = (self.id()?, self.world as i32, self.rank as i32);
        // SAFETY: all zeros are a valid value, and the fields that NCCL reads are set below.
        let mut config: ncclConfig_t = unsafe { std::mem::zeroed() };
        config.size = size_of::<ncclConfig_t>();
        (config.magic, config.version, config.blocking) = (0xcafe_beef, 22907, blocking.into());
        // SAFETY: `handle` and `config` live until the call returns.
        let status = nccl(unsafe { result::comm_init_rank_config(&raw mut handle, world, id, rank, &raw mut config) })?;
        let ranks = Ranks { job: self, handle };
        if blocking {
            ensure!(status == NcclStatus::Success && ranks.error()? == ncclResult_t::ncclSuccess);
        } else {
            ensure!(status == NcclStatus::InProgress);
            ranks.wait_until_ready()?;
        }
        Ok(ranks)
    }
}

impl Ranks<'_> {
    fn error(&self) -> anyhow::Result<ncclResult_t> {
        let mut error = ncclResult_t::ncclSuccess;
        // SAFETY: the handle belongs to this process, and `error` lives until the call returns.
        nccl(unsafe { sys::ncclCommGetAsyncError(self.handle, &raw mut error) }.result())?;
        Ok(error)
    }

    /// Polls until the communicator has finished its last call.
    fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.poll_until(|| Ok(self.error()? != ncclResult_t::ncclInProgress))
    }

    /// Waits for the work on the stream.
    pub(crate) fn wait(&self) -> anyhow::Result<()> {
        let event = self.job.stream.record_event(None)?;
        self.poll_until(|| Ok(event.try_is_complete()?))
    }

    /// Waits for the work on the stream after letting the default stream wait for it, too.
    pub(crate) fn wait_as_the_trainer(&self) -> anyhow::Result<()> {
        let event = self.job.stream.record_event(None)?;
        self.job.context.default_stream().wait(&event)?;
        self.poll_until(|| Ok(event.try_is_complete()?))
    }

    /// Polls until `done`; fails on an asynchronous error, a timeout or the test's `abort` file.
    fn poll_until(&self, done: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let (start, abort) = (Instant::now(), self.job.folder.join("abort"));
        loop {
            let (is_done, error) = (done()?, self.error()?);
            ensure!(matches!(error, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress), "{error:?}");
            if is_done {
                return Ok(());
            }
            ensure!(!abort.exists(), "hangs");
            ensure!(start.elapsed() < TIMEOUT, "timeout");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    pub(crate) fn all_reduce(&self, data: &mut [f32]) -> anyhow::Result<()> {
        let data_type = ncclDataType_t::ncclFloat32;
        self.reduce_in_place(data, data_type, ncclRedOp_t::ncclSum)
    }

    /// Starts an in-place all-reduce. The caller must keep the data until the stream has finished it.
    fn reduce_in_place<T>(&self, data: &mut [T], kind: ncclDataType_t, how: ncclRedOp_t) -> anyhow::Result<()> {
        let (memory, stream) = (data.as_mut_ptr(), self.job.stream.cu_stream().cast());
        // SAFETY: every caller waits for the stream before it uses the data again, except the test of exactly that.
        let status =
            unsafe { result::all_reduce(memory.cast(), memory.cast(), data.len(), kind, how, self.handle, stream) };
        if nccl(status)? == NcclStatus::InProgress {
            self.wait_until_ready()?;
        }
        Ok(())
    }

    pub(crate) fn check_sums(&self, elements: usize) -> anyhow::Result<()> {
        let (job, stream) = (self.job, self.job.stream.cu_stream().cast());
        let mut data = values(job.rank, elements);
        self.all_reduce(&mut data)?;
        job.stream.synchronize()?;
        ensure!(data == job.sums(elements), "all_reduce in place of {elements}");
        let (mine, mut sum) = (values(job.rank, elements), vec![0.0_f32; elements]);
        let (kind, how) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        // SAFETY: both have `elements` elements and live until the stream is synchronised.
        nccl(unsafe {
            result::all_reduce(mine.as_ptr().cast(), sum.as_mut_ptr().cast(), elements, kind, how, self.handle, stream)
        })?;
        job.stream.synchronize()?;
        ensure!(sum == job.sums(elements) && mine == values(job.rank, elements), "all_reduce of {elements}");
        Ok(())
    }

    pub(crate) fn check_broadcasts(&self, elements: usize) -> anyhow::Result<()> {
        let (job, stream) = (self.job, self.job.stream.cu_stream().cast());
        for root in 0..job.world {
            let mut data = values(job.rank, elements);
            let memory = data.as_mut_ptr().cast();
            let kind = ncclDataType_t::ncclFloat32;
            // SAFETY: the data lives until the stream is synchronised.
            nccl(unsafe { result::broadcast(memory, memory, elements, kind, root as i32, self.handle, stream) })?;
            job.stream.synchronize()?;
            ensure!(data == values(root, elements), "broadcast of {elements} from {root}");
        }
        Ok(())
    }

    /// Checks all-gather, and reduce-scatter of its result.
    pub(crate) fn check_parts(&self, elements: usize) -> anyhow::Result<()> {
        let (job, stream, kind) = (self.job, self.job.stream.cu_stream().cast(), ncclDataType_t::ncclFloat32);
        let mine = values(job.rank, elements);
        let mut all = vec![0.0_f32; elements * job.world];
        // SAFETY: both have the length that the call requires and live until the stream is synchronised.
        nccl(unsafe {
            result::all_gather(mine.as_ptr().cast(), all.as_mut_ptr().cast(), elements, kind, self.handle, stream)
        })?;
        job.stream.synchronize()?;
        let expected: Vec<f32> = (0..job.world).flat_map(|rank| values(rank, elements)).collect();
        ensure!(all == expected, "all_gather of {elements}");
        let mut part = vec![0.0_f32; elements];
        let (from, to, how) = (all.as_ptr().cast(), part.as_mut_ptr().cast(), ncclRedOp_t::ncclSum);
        // SAFETY: as above.
        nccl(unsafe { result::reduce_scatter(from, to, elements, kind, how, self.handle, stream) })?;
        job.stream.synchronize()?;
        let expected: Vec<f32> = mine.iter().map(|element| element * job.world as f32).collect();
        ensure!(part == expected, "reduce_scatter of {elements}");
        Ok(())
    }

    pub(crate) fn check_types(&self) -> anyhow::Result<()> {
        use ncclDataType_t::*;
        use ncclRedOp_t::*;
        let (rank, last) = (self.job.rank, self.job.world - 1);
        let mut bytes = [rank as u8, 7];
        self.reduce_in_place(&mut bytes, ncclUint8, ncclMax)?;
        let mut integers = [rank as i32 - 1, -7];
        self.reduce_in_place(&mut integers, ncclInt32, ncclMin)?;
        let mut doubles = [rank as f64, 0.1];
        self.reduce_in_place(&mut doubles, ncclFloat64, ncclMax)?;
        self.job.stream.synchronize()?;
        ensure!((bytes, integers, doubles) == ([last as u8, 7], [-1, -7], [last as f64, 0.1]));
        let error = self.reduce_in_place(&mut bytes, ncclBfloat16, ncclSum).err();
        let error = error.context("bfloat16 was reduced")?.to_string();
        ensure!(error == "ncclInvalidArgument", "{error}");
        Ok(())
    }
}
