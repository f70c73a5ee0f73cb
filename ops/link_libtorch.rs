//! The build script of every package that links libtorch. It gives programs and tests an rpath to libtorch, and to NCCL
//! if its wheel is installed next to that of libtorch, so that `mpirun -n 4 arinar-trainer` needs no LD_LIBRARY_PATH.
//! torch-sys provides the path of libtorch.

fn main() {
    // A changed build script runs again by itself; without this line, a change of any file of the package would do so.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // Libraries loaded at run time are also searched in the rpath, but after LD_LIBRARY_PATH.
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}/../../nvidia/nccl/lib");
    }
}
