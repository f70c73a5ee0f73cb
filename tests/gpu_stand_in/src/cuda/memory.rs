//! Memory: host memory stands for the device's. What is allocated is filled with NaN, and so is what is given back.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ffi::{c_uchar, c_uint, c_void},
    sync::Mutex,
};

use super::{
    code, device, put,
    result::CudaResult::{self, *},
    stream::{Stream, usable},
};
use crate::lock;

const ALIGNMENT: usize = 256;
/// Four of these are a NaN in float32, eight in float64.
const POISON: u8 = 0xff;

/// Start to length of what the "device" gave out, and of host memory that it knows as page-locked. Other memory is the
/// program's own.
static DEVICE: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static PINNED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
/// Host memory of the program that it had page-locked.
static REGISTERED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn is_pinned(address: usize) -> bool {
    [&PINNED, &REGISTERED].into_iter().any(|ranges| {
        let ranges = lock(ranges);
        ranges.range(..=address).next_back().is_some_and(|(start, len)| address < start + len)
    })
}

fn allocate(ranges: &Mutex<BTreeMap<usize, usize>>, bytes: usize) -> Result<usize, CudaResult> {
    device::current()?;
    if bytes == 0 {
        return Err(InvalidValue);
    }
    let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| OutOfMemory)?;
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return Err(OutOfMemory);
    }
    // SAFETY: `bytes` bytes were just allocated here.
    unsafe { start.write_bytes(POISON, bytes) };
    lock(ranges).insert(start.addr(), bytes);
    Ok(start.expose_provenance())
}

/// A null pointer is nothing to free.
fn free(ranges: &Mutex<BTreeMap<usize, usize>>, address: usize) -> Result<(), CudaResult> {
    if address == 0 {
        return Ok(());
    }
    let bytes = lock(ranges).remove(&address).ok_or(InvalidValue)?;
    let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| InvalidValue)?;
    let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: `allocate` made this very range with this layout, and it was in the table until just now, so it is freed
    // once. Whoever still uses it reads NaN or breaks, as on a device.
    unsafe {
        start.write_bytes(POISON, bytes);
        dealloc(start, layout);
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(place: *mut usize, bytes: usize) -> CudaResult {
    match allocate(&DEVICE, bytes) {
        // SAFETY: the caller gives a place for one pointer, or null.
        Ok(start) => unsafe { put(place, start) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: usize) -> CudaResult {
    super::stream::synchronize_all();
    code(free(&DEVICE, address))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(place: *mut usize, bytes: usize, stream: usize) -> CudaResult {
    if let Err(error) = usable(stream) {
        return error;
    }
    // SAFETY: handed on as it came.
    unsafe { cuMemAlloc_v2(place, bytes) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: usize, stream: usize) -> CudaResult {
    code(usable(stream).and_then(|stream| {
        if !lock(&DEVICE).contains_key(&address) {
            return Err(InvalidValue);
        }
        stream.mark(move || {
            // Freed twice: the second is told when it was called too late to be seen above.
            let _ = free(&DEVICE, address);
        });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(place: *mut usize, bytes: usize, _flags: c_uint) -> CudaResult {
    match allocate(&PINNED, bytes) {
        // SAFETY: the caller gives a place for one pointer, or null.
        Ok(start) => unsafe { put(place, start) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: usize) -> CudaResult {
    code(free(&PINNED, address))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: usize, bytes: usize, _flags: c_uint) -> CudaResult {
    code(device::current().and_then(|_| {
        if address == 0 || bytes == 0 || lock(&REGISTERED).insert(address, bytes).is_some() {
            return Err(InvalidValue);
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: usize) -> CudaResult {
    if lock(&REGISTERED).remove(&address).is_some() { Success } else { InvalidValue }
}

/// Copies when the stream gets there.
fn copy(stream: &Stream, to: usize, from: usize, bytes: usize) {
    stream.launch(move || {
        let (to, from) =
            (std::ptr::with_exposed_provenance_mut::<u8>(to), std::ptr::with_exposed_provenance::<u8>(from));
        // SAFETY: the caller of the C function promises `bytes` bytes at both places until the stream has done this.
        // They may overlap where host and "device" memory are the same.
        unsafe { from.copy_to(to, bytes) };
    });
}

/// A copy between the device and the host memory at `host`. As with the driver, only page-locked memory is copied in
/// the background: with any other the call returns when the copy is done.
fn copy_host(handle: usize, to: usize, from: usize, host: usize, bytes: usize) -> CudaResult {
    code(usable(handle).and_then(|stream| {
        if bytes > 0 && (to == 0 || from == 0) {
            return Err(InvalidValue);
        }
        copy(&stream, to, from, bytes);
        if !is_pinned(host) {
            stream.synchronize();
        }
        Ok(())
    }))
}

fn copy_device(handle: usize, to: usize, from: usize, bytes: usize) -> CudaResult {
    code(usable(handle).and_then(|stream| {
        if bytes > 0 && (to == 0 || from == 0) {
            return Err(InvalidValue);
        }
        copy(&stream, to, from, bytes);
        Ok(())
    }))
}

/// Pointers of host memory come in with the right to be written through.
fn exposed(pointer: *const c_void) -> usize {
    pointer.expose_provenance()
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: usize, bytes: usize, stream: usize) -> CudaResult {
    let to = exposed(to);
    copy_host(stream, to, from, to, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: usize, from: *const c_void, bytes: usize, stream: usize) -> CudaResult {
    let from = exposed(from);
    copy_host(stream, to, from, from, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> CudaResult {
    copy_device(stream, to, from, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyAsync(to: usize, from: usize, bytes: usize, stream: usize) -> CudaResult {
    copy_device(stream, to, from, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: usize, bytes: usize) -> CudaResult {
    copy_device(0, exposed(to), from, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: usize, from: *const c_void, bytes: usize) -> CudaResult {
    copy_device(0, to, exposed(from), bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: usize, from: usize, bytes: usize) -> CudaResult {
    copy_device(0, to, from, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: usize, value: c_uchar, bytes: usize, stream: usize) -> CudaResult {
    code(usable(stream).and_then(|stream| {
        if bytes > 0 && to == 0 {
            return Err(InvalidValue);
        }
        stream.launch(move || {
            let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
            // SAFETY: the caller promises `bytes` bytes there until the stream has done this.
            unsafe { to.write_bytes(value, bytes) };
        });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: usize, value: c_uchar, bytes: usize) -> CudaResult {
    cuMemsetD8Async(to, value, bytes, 0)
}
