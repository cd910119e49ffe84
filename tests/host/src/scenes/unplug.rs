//! A function is taken out while the daemon has it.

use std::fs;
use std::io;

use viommu_client::Rights;

use crate::bench::{Bench, HERE, ONE, OPTIONS, SECOND, SECOND_AT, TEST};
use crate::pci::Function;
use crate::{check, wait_until};

pub(super) fn play() -> io::Result<()> {
    let mut bench = Bench::open(OPTIONS)?;
    let page = bench.ram.page()?;
    bench.attach(ONE, TEST)?;
    bench.attach(ONE, SECOND)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    let (remove, folder) =
        (Function::at(SECOND_AT).file("remove"), Function::at(SECOND_AT).file(""));
    // the kernel waits there until nobody has the function
    let removal = std::thread::spawn(move || fs::write(remove, "1"));
    check("others", others_go_on(&mut bench, page));
    let Bench { daemon, driver, .. } = bench;
    drop(driver);
    daemon.end()?;
    let gone = wait_until("the function is gone", || !folder.exists());
    let removed = removal.join().unwrap_or_else(|_| Err(io::Error::other("the removal panicked")));
    let told = "the others went on, and the function is gone";
    check("removed", gone.and(removed).map(|()| told.to_owned()));
    Ok(())
}

fn others_go_on(bench: &mut Bench, page: u64) -> io::Result<String> {
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    bench.is_refused(HERE, page)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    Ok("mapped, unmapped and mapped while a function is being removed".to_owned())
}
