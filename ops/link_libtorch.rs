//! Build script of every package: gives its binaries and tests an rpath to libtorch, so that a plain
//! `mpirun -n 4 arinar-trainer` needs no LD_LIBRARY_PATH. torch-sys names the folder.

fn main() {
    println!("cargo:rerun-if-changed=../ops/link_libtorch.rs");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
