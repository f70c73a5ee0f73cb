//! Devices and their primary contexts. Each thread has a current context.

use std::{
    cell::Cell,
    ffi::{c_char, c_int, c_uint},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    code, put,
    result::CudaResult::{self, *},
};
use crate::{environment::settings, lock};

/// CUDA version that the driver reports.
const DRIVER_VERSION: c_int = 13000;
/// Memory that a device reports, in bytes.
const MEMORY: usize = 8 << 30;
/// Distance between the handles of contexts: that of device d is `CONTEXT_STEP * (d + 1)`.
const CONTEXT_STEP: usize = 0x100;

static INITIALIZED: AtomicBool = AtomicBool::new(false);
/// Reference count of each device's primary context.
static RETAINED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

thread_local! {
    /// Handle of the current context; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Returns the device whose context is current in this thread.
///
/// # Errors
/// Returns `NotInitialized` before `cuInit`, and `InvalidContext` if no context is current or it was released.
pub(crate) fn current() -> Result<usize, CudaResult> {
    initialized()?;
    let device = (CURRENT.get() / CONTEXT_STEP).checked_sub(1).ok_or(InvalidContext)?;
    if lock(&RETAINED).get(device).is_none_or(|count| *count == 0) {
        return Err(InvalidContext);
    }
    Ok(device)
}

fn initialized() -> Result<(), CudaResult> {
    if INITIALIZED.load(Ordering::Acquire) { Ok(()) } else { Err(NotInitialized) }
}

fn device(number: c_int) -> Result<usize, CudaResult> {
    initialized()?;
    usize::try_from(number).ok().filter(|device| *device < settings().gpus).ok_or(InvalidDevice)
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> CudaResult {
    if flags != 0 {
        return InvalidValue;
    }
    if settings().gpus == 0 {
        return NoDevice;
    }
    INITIALIZED.store(true, Ordering::Release);
    Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CudaResult {
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(version, DRIVER_VERSION) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CudaResult {
    if let Err(error) = initialized() {
        return error;
    }
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(count, settings().gpus as c_int) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(out: *mut c_int, ordinal: c_int) -> CudaResult {
    match device(ordinal) {
        // SAFETY: the caller passes a pointer to an integer, or null.
        Ok(_) => unsafe { put(out, ordinal) },
        Err(error) => error,
    }
}

/// Copies a text to C memory of `len` bytes, truncated to fit and terminated by a zero.
///
/// # Safety
/// `out` must be null or valid for writing `len` bytes.
unsafe fn put_text(out: *mut c_char, len: c_int, text: &str) -> CudaResult {
    let Some(room) = usize::try_from(len).ok().and_then(|len| len.checked_sub(1)).filter(|_| !out.is_null()) else {
        return InvalidValue;
    };
    let kept = text.len().min(room);
    // SAFETY: `kept` bytes and the zero fit into the caller's `len` bytes, and the text does not overlap them.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), kept);
        out.add(kept).write(0);
    }
    Success
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, number: c_int) -> CudaResult {
    match device(number) {
        // SAFETY: the caller passes a pointer to `len` bytes, or null.
        Ok(device) => unsafe { put_text(name, len, &format!("stand-in GPU {device}")) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, number: c_int) -> CudaResult {
    match device(number) {
        // SAFETY: the caller passes a pointer to `len` bytes, or null.
        Ok(device) => unsafe { put_text(name, len, &format!("FFFF:{:02X}:00.0", device + 1)) },
        Err(error) => error,
    }
}

unsafe fn put_uuid(out: *mut [u8; 16], number: c_int) -> CudaResult {
    match device(number) {
        // SAFETY: the caller passes a pointer to 16 bytes, or null.
        Ok(device) => unsafe { put(out, [device as u8 + 1; 16]) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], number: c_int) -> CudaResult {
    // SAFETY: the arguments are passed on unchanged.
    unsafe { put_uuid(out, number) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], number: c_int) -> CudaResult {
    // SAFETY: the arguments are passed on unchanged.
    unsafe { put_uuid(out, number) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> CudaResult {
    match device(number) {
        // SAFETY: the caller passes a pointer to a number, or null.
        Ok(_) => unsafe { put(bytes, MEMORY) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CudaResult {
    if let Err(error) = current() {
        return error;
    }
    // SAFETY: the caller passes pointers to two numbers, or null.
    let results = unsafe { [put(free, MEMORY), put(total, MEMORY)] };
    if results == [Success; 2] { Success } else { InvalidValue }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(out: *mut c_int, attribute: c_uint, number: c_int) -> CudaResult {
    let device = match device(number) {
        Ok(device) => device as c_int,
        Err(error) => return error,
    };
    let value = match attribute {
        // Number of multiprocessors.
        16 => 1,
        // PCI bus and PCI domain. No real machine has this domain. The PCI device is 0.
        33 => device + 1,
        50 => 0xffff,
        // Unified addressing and memory pools.
        41 | 115 => 1,
        // Compute capability 9.0.
        75 => 9,
        _ => 0,
    };
    // SAFETY: the caller passes a pointer to an integer, or null.
    unsafe { put(out, value) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, number: c_int) -> CudaResult {
    let device = match device(number) {
        Ok(device) => device,
        Err(error) => return error,
    };
    let mut retained = lock(&RETAINED);
    retained.resize(settings().gpus, 0);
    retained[device] += 1;
    // SAFETY: the caller passes a pointer to a handle, or null.
    unsafe { put(context, CONTEXT_STEP * (device + 1)) }
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> CudaResult {
    code(device(number).and_then(|device| {
        let mut retained = lock(&RETAINED);
        let count = retained.get_mut(device).filter(|count| **count > 0).ok_or(InvalidContext)?;
        *count -= 1;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> CudaResult {
    code(initialized().and_then(|()| {
        if !context.is_multiple_of(CONTEXT_STEP) || context > CONTEXT_STEP * settings().gpus {
            return Err(InvalidContext);
        }
        CURRENT.set(context);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> CudaResult {
    if let Err(error) = initialized() {
        return error;
    }
    // SAFETY: the caller passes a pointer to a handle, or null.
    unsafe { put(context, CURRENT.get()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(out: *mut c_int) -> CudaResult {
    match current() {
        // SAFETY: the caller passes a pointer to an integer, or null.
        Ok(device) => unsafe { put(out, device as c_int) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> CudaResult {
    code(current().map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> CudaResult {
    code(current().map(|_| super::stream::synchronize_all()))
}
