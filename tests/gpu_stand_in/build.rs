//! Keeps the library in memory once it is loaded: the threads of its streams must not lose their code when a program
//! that only looked whether it is there closes it again.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
