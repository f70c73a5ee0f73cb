//! The build script of every package that links libtorch. It gives programs and tests an rpath to libtorch, and to NCCL
//! if its wheel is installed next to that of libtorch, so that `mpirun -n 4 arinar-trainer` needs no LD_LIBRARY_PATH.
//! torch-sys provides the path of libtorch.

fn main() {
    println!("cargo:rerun-if-changed=../ops/link_libtorch.rs");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // Libraries loaded at run time are also searched in the rpath, but after LD_LIBRARY_PATH.
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}/../../nvidia/nccl/lib");
    }
}
