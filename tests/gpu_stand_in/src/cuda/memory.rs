//! Memory: host memory takes the place of device memory. It is filled with NaN when it is allocated and when it is
//! freed.

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
/// Fill byte: four of them are a NaN in float32, eight in float64.
const POISON: u8 = 0xff;

/// Length of each allocation of "device" memory by its address.
static DEVICE: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
/// Length of each allocation of page-locked host memory by its address.
static PINNED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
/// Length of each range of the program's own memory that it registered as page-locked, by its address.
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
    // SAFETY: the layout's size is not zero.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return Err(OutOfMemory);
    }
    // SAFETY: `start` points to `bytes` bytes allocated above.
    unsafe { start.write_bytes(POISON, bytes) };
    lock(ranges).insert(start.addr(), bytes);
    Ok(start.expose_provenance())
}

/// Frees an allocation. A null pointer is ignored.
fn free(ranges: &Mutex<BTreeMap<usize, usize>>, address: usize) -> Result<(), CudaResult> {
    if address == 0 {
        return Ok(());
    }
    let bytes = lock(ranges).remove(&address).ok_or(InvalidValue)?;
    let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| InvalidValue)?;
    let start = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: `allocate` returned this range with this layout, and it was in the table until now, so it is freed once.
    // A program that still uses it reads NaN or crashes, as with a device.
    unsafe {
        start.write_bytes(POISON, bytes);
        dealloc(start, layout);
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(out: *mut usize, bytes: usize) -> CudaResult {
    match allocate(&DEVICE, bytes) {
        // SAFETY: the caller passes a pointer to a pointer, or null.
        Ok(start) => unsafe { put(out, start) },
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: usize) -> CudaResult {
    super::stream::synchronize_all();
    code(free(&DEVICE, address))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(out: *mut usize, bytes: usize, stream: usize) -> CudaResult {
    if let Err(error) = usable(stream) {
        return error;
    }
    // SAFETY: the arguments are passed on unchanged.
    unsafe { cuMemAlloc_v2(out, bytes) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: usize, stream: usize) -> CudaResult {
    code(usable(stream).and_then(|stream| {
        if !lock(&DEVICE).contains_key(&address) {
            return Err(InvalidValue);
        }
        stream.mark(move || {
            // This fails for a double free whose second call came before the first was executed.
            let _ = free(&DEVICE, address);
        });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(out: *mut usize, bytes: usize, _flags: c_uint) -> CudaResult {
    match allocate(&PINNED, bytes) {
        // SAFETY: the caller passes a pointer to a pointer, or null.
        Ok(start) => unsafe { put(out, start) },
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

/// Copies memory once the stream reaches this work.
fn copy(stream: &Stream, to: usize, from: usize, bytes: usize) {
    stream.launch(move || {
        let (to, from) =
            (std::ptr::with_exposed_provenance_mut::<u8>(to), std::ptr::with_exposed_provenance::<u8>(from));
        // SAFETY: the caller of the C function guarantees `bytes` bytes at both addresses until the stream has finished
        // this work. They may overlap, since host and "device" memory are the same.
        unsafe { from.copy_to(to, bytes) };
    });
}

/// Copies between the device and the host memory at `host`. As with the driver, only page-locked memory is copied in
/// the background; for other memory the call returns when the copy is done.
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

/// Returns the address of host memory and exposes its provenance, so that the stream's thread can access it.
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
            // SAFETY: the caller guarantees `bytes` bytes at `to` until the stream has finished this work.
            unsafe { to.write_bytes(value, bytes) };
        });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: usize, value: c_uchar, bytes: usize) -> CudaResult {
    cuMemsetD8Async(to, value, bytes, 0)
}
