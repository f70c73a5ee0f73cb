//! Element types and reductions.

use super::segment::Segment;

/// The supported values of `ncclDataType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    Int8,
    Uint8,
    Int32,
    Uint32,
    Int64,
    Uint64,
    /// Supported for copies, but not for reductions.
    Float16,
    Float32,
    Float64,
    /// Supported for copies, but not for reductions.
    Bfloat16,
}

use DataType::*;

impl DataType {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        let all = [Int8, Uint8, Int32, Uint32, Int64, Uint64, Float16, Float32, Float64, Bfloat16];
        all.get(code as usize).copied()
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Int8 | Uint8 => 1,
            Float16 | Bfloat16 => 2,
            Int32 | Uint32 | Float32 => 4,
            Int64 | Uint64 | Float64 => 8,
        }
    }

    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(crate) fn can_be_reduced(self) -> bool {
        !matches!(self, Float16 | Bfloat16)
    }
}

/// `ncclRedOp_t` without user-defined operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Prod,
    Max,
    Min,
    Avg,
}

impl Reduction {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::Avg].get(code as usize).copied()
    }

    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

trait Element: Copy {
    fn combine(self, other: Self, how: Reduction) -> Self;
    fn divide(self, count: usize) -> Self;
}

macro_rules! integers {
    ($($kind:ty),*) => {$(
        impl Element for $kind {
            fn combine(self, other: Self, how: Reduction) -> Self {
                match how {
                    Reduction::Sum | Reduction::Avg => self.wrapping_add(other),
                    Reduction::Prod => self.wrapping_mul(other),
                    Reduction::Max => self.max(other),
                    Reduction::Min => self.min(other),
                }
            }

            fn divide(self, count: usize) -> Self {
                self / count as Self
            }
        }
    )*};
}

macro_rules! floats {
    ($($kind:ty),*) => {$(
        impl Element for $kind {
            fn combine(self, other: Self, how: Reduction) -> Self {
                match how {
                    Reduction::Sum | Reduction::Avg => self + other,
                    Reduction::Prod => self * other,
                    Reduction::Max => self.max(other),
                    Reduction::Min => self.min(other),
                }
            }

            fn divide(self, count: usize) -> Self {
                self / count as Self
            }
        }
    )*};
}

integers!(i8, u8, i32, u32, i64, u64);
floats!(f32, f64);

/// Combines the ranks' buffers of a round in rank order and writes the result to `to`.
///
/// # Safety
/// Every rank must have posted `bytes` bytes of `kind` in this round, and none may overwrite them before this rank has
/// consumed the round. `to` must be valid for writing `bytes` bytes and outside the buffers.
pub(crate) unsafe fn reduce(segment: &Segment, round: u64, bytes: usize, kind: DataType, how: Reduction, to: *mut u8) {
    // SAFETY: the caller's guarantees are passed on.
    unsafe {
        match kind {
            Int8 => reduce_as::<i8>(segment, round, bytes, how, to),
            Uint8 => reduce_as::<u8>(segment, round, bytes, how, to),
            Int32 => reduce_as::<i32>(segment, round, bytes, how, to),
            Uint32 => reduce_as::<u32>(segment, round, bytes, how, to),
            Int64 => reduce_as::<i64>(segment, round, bytes, how, to),
            Uint64 => reduce_as::<u64>(segment, round, bytes, how, to),
            Float32 => reduce_as::<f32>(segment, round, bytes, how, to),
            Float64 => reduce_as::<f64>(segment, round, bytes, how, to),
            // The call of the collective has already failed.
            Float16 | Bfloat16 => {}
        }
    }
}

unsafe fn reduce_as<T: Element>(segment: &Segment, round: u64, bytes: usize, how: Reduction, to: *mut u8) {
    let elements = |rank| {
        // SAFETY: the buffer is aligned for every element type, `bytes` bytes of it were posted, and no rank writes to
        // it until this rank has consumed the round. All bit patterns are valid elements.
        unsafe { std::slice::from_raw_parts(segment.buffer(rank, round).cast::<T>(), bytes / size_of::<T>()) }
    };
    let mut sum = elements(0).to_vec();
    for rank in 1..segment.world {
        for (sum, element) in sum.iter_mut().zip(elements(rank)) {
            *sum = sum.combine(*element, how);
        }
    }
    if how == Reduction::Avg {
        sum.iter_mut().for_each(|sum| *sum = sum.divide(segment.world));
    }
    // SAFETY: `to` is valid for writing `bytes` bytes, and `sum` does not overlap it.
    unsafe { to.copy_from_nonoverlapping(sum.as_ptr().cast(), bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_match_the_nccl_header() {
        assert_eq!(DataType::from_code(7), Some(Float32));
        assert_eq!(DataType::from_code(8), Some(Float64));
        assert_eq!(DataType::from_code(9), Some(Bfloat16));
        assert_eq!(DataType::from_code(10), None);
        assert_eq!(Reduction::from_code(2), Some(Reduction::Max));
        assert_eq!(Reduction::from_code(3), Some(Reduction::Min));
        assert_eq!(Reduction::from_code(5), None);
    }
}
