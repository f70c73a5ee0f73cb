//! Versions of the CUDA driver and runtime.

use cudarc::driver::sys;

use super::error::require_driver;
use crate::device;

/// Returns the CUDA version of the driver, for example "13.0"; `None` without a driver.
pub fn driver_version() -> Option<String> {
    require_driver().ok()?;
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().ok()?;
    Some(dotted(version))
}

/// Returns the version of libtorch's CUDA runtime, for example "13.0"; `None` if libtorch's CUDA libraries are not loaded.
pub fn runtime_version() -> Option<String> {
    // tch would panic if they are not loaded.
    device::has_libtorch_cuda().then(|| dotted(tch::utils::version_cudart() as i32))
}

/// Formats a CUDA version number; CUDA represents 13.0 as 13000.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::dotted;

    #[test]
    fn versions_are_formatted_with_a_dot() {
        assert_eq!(dotted(13_000), "13.0");
        assert_eq!(dotted(12_080), "12.8");
    }
}
