//! Build script of every package: gives its binaries and tests an rpath to libtorch, and to NCCL where its wheel lies
//! beside that of libtorch, so that a plain `mpirun -n 4 arinar-trainer` needs no LD_LIBRARY_PATH. torch-sys names the
//! folder.

fn main() {
    // A changed build script runs again by itself; without this line, a change of any file of the package would do so.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // What is loaded at run time is looked for there, too, but after LD_LIBRARY_PATH.
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}/../../nvidia/nccl/lib");
    }
}
