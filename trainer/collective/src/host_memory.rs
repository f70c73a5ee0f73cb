//! Slices over tensors in host memory, for the few loops that are a single pass over flat memory.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

/// Returns true if [`slice()`] and [`slice_mut`] apply: the tensor is contiguous float32 in host memory.
pub fn is_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous()
}

/// Returns the elements of a host tensor (see [`is_host`]) in memory order; empty for any other tensor.
pub fn slice(tensor: &Tensor) -> &[f32] {
    if !is_host(tensor) {
        return &[];
    }
    // SAFETY: the tensor is contiguous float32 in host memory, so `numel` elements start at `data_ptr`. The storage lives
    // as long as the borrowed handle, and nothing writes to it while the slice is in use: the training thread writes only
    // inside calls that it makes itself, and before the next write it waits for the checkpoint thread, which reads the
    // same tensors (`CheckpointManager::wait_until_copied`).
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

/// Returns the elements of a host tensor for writing; empty for any other tensor.
pub fn slice_mut(tensor: &mut Tensor) -> &mut [f32] {
    if !is_host(tensor) {
        return &mut [];
    }
    // SAFETY: as in `slice`. In addition, the flat tensors passed here are owned by the caller, whose other views (the
    // model's variables) are read only by libtorch calls of this thread and never while the exclusive slice lives, and the
    // checkpoint thread, which reads them too, has finished (see `slice`).
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

/// Returns the memory of a host tensor as little-endian bytes, the order that safetensors requires.
pub fn bytes(tensor: &Tensor) -> &[u8] {
    const { assert!(cfg!(target_endian = "little")) };
    let floats = slice(tensor);
    // SAFETY: the bytes are exactly those of the floats, u8 has no alignment or validity requirements, and the lifetime is
    // that of the borrowed tensor.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast::<u8>(), size_of_val(floats)) }
}

/// Splits `0..len` into at most `parts` non-empty ranges of nearly equal length whose starts are multiples of `grain`.
pub fn ranges(len: usize, parts: usize, grain: usize) -> Vec<Range<usize>> {
    let grains = len.div_ceil(grain);
    let parts = parts.clamp(1, grains.max(1));
    (0..parts)
        .map(|part| {
            let start = grains * part / parts * grain;
            let end = (grains * (part + 1) / parts * grain).min(len);
            start..end
        })
        .filter(|range| !range.is_empty())
        .collect()
}

/// Returns the number of threads worth using for a pass over `len` elements: libtorch's number of threads, but at least a
/// quarter of a million elements each, because starting a thread costs as much as reading 0.1 MB.
pub fn threads_for(len: usize) -> usize {
    let available = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    available.min(len / (1 << 18)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_everything_once() {
        for (len, parts, grain) in [(0, 3, 4), (1, 3, 4), (1000, 3, 16), (1 << 20, 7, 1024)] {
            let cut = ranges(len, parts, grain);
            let mut next = 0;
            for range in &cut {
                assert_eq!(range.start, next);
                assert_eq!(range.start % grain, 0);
                next = range.end;
            }
            assert_eq!(next, len);
            assert!(cut.len() <= parts);
        }
    }

    #[test]
    fn slices_alias_the_tensor() {
        let mut tensor = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        slice_mut(&mut tensor)[2] = 5.0;
        assert_eq!(slice(&tensor), &[0.0, 0.0, 5.0, 0.0]);
        assert!(slice(&tensor.to_kind(Kind::Double)).is_empty());
    }
}
