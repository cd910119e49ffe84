//! The cost of MAP and UNMAP by batch, number of mappings, placement and the device's way to wait.

use crate::cpu::{Places, pin, used_ns};
use crate::driver::{Driver, Expected, MAX_BATCH, Sent, Wait};
use crate::figures::{count, head, median, row};
use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, EVENT_QUEUE_AT, QUEUE_SIZE, REQUEST_QUEUE_AT};
use crate::support::queue::Queue;
use crate::support::vmm::{EVENT, LINUX_FEATURES, REQUEST, Vmm};
use crate::support::wire::attach;
use crate::work::{DOMAIN, Work, map_page, unknown, unmap_page};

/// Pages that are unmapped before they are mapped again, at most half of all.
const LONGEST_RUN: usize = 8192;

/// Batches of requests that do nothing.
const EMPTY_ROUNDS: usize = 1001;

/// How long the polling daemon looks for more before it sleeps, microseconds.
const POLL_US: &str = "200";

/// Options of every daemon here: room for all mappings, and no line for each request.
const OPTIONS: [&str; 4] = ["--log-level", "info", "--max-mappings", "2097152"];

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Scope {
    /// Told before this process is put into any of them.
    pub(crate) places: Vec<Places>,
    pub(crate) live: Vec<usize>,
    /// Requests of each kind in a measurement of batches of [`MAX_BATCH`].
    pub(crate) batched: usize,
    /// The same for batches of one.
    pub(crate) single: usize,
}

impl Scope {
    /// A processor for each side; `None` where this process may use one only.
    pub(crate) fn two(&self) -> Option<Places> {
        self.places.iter().copied().find(|places| !places.is_one())
    }

    /// The whole, or, with `--quick`, or without cargo's `--bench`, a part.
    pub(crate) fn from_arguments(arguments: &[String]) -> Self {
        let told = |name: &str| arguments.iter().any(|argument| argument == name);
        let whole = told("--bench") && !told("--quick");
        let mut live = vec![1 << 10, 16 << 10];
        if whole {
            live.extend([128 << 10, 1 << 20]);
        }
        let after = arguments.iter().position(|argument| argument == "--live").map(|at| at + 1);
        if let Some(number) = after.and_then(|at| arguments.get(at)) {
            live = vec![number.parse().unwrap()];
        }
        let (batched, single) = if whole { (1 << 17, 4000) } else { (1 << 12, 200) };
        Self { places: Places::all(), live, batched, single }
    }
}

/// Prints the tables.
pub(crate) fn print(scope: &Scope) {
    for &places in &scope.places {
        for polls in [false, true] {
            print_table(scope, places, polls);
        }
    }
}

fn print_table(scope: &Scope, places: Places, polls: bool) {
    let on = if places.is_one() { "one CPU" } else { "two CPUs" };
    let waits = if polls {
        format!("polls (`--poll-us {POLL_US}`)")
    } else {
        "sleeps (`--poll-us 0`)".to_owned()
    };
    print_head(&format!("Driver and daemon on {on}; the daemon {waits}."));
    for &live in &scope.live {
        Bench::start(places, polls, live).print(scope);
    }
}

/// The head of a table of [`Costs`].
pub(crate) fn print_head(what: &str) {
    println!("\n{what} Nanoseconds for each request:");
    let columns = [
        "live",
        "batch",
        "empty round trip",
        "empty request",
        "MAP gross",
        "MAP net",
        "UNMAP gross",
        "UNMAP net",
        "daemon MAP",
        "daemon UNMAP",
        "kicks",
    ];
    head(&columns, 0);
}

/// A device, a driver that talks to it, and what is mapped.
pub(crate) struct Bench {
    /// Our daemon, and the connection to it; another device is held by its driver.
    ours: Option<(Daemon, Vmm)>,
    driver: Driver,
    polls: bool,
    work: Work,
}

/// Nanoseconds.
pub(crate) struct Costs {
    empty_round_trip: u64,
    /// For each request of a batch of empty ones.
    empty: u64,
    pub(crate) map: Kind,
    pub(crate) unmap: Kind,
    /// Batches that the daemon wanted a kick for, of all.
    kicked: (usize, usize),
}

/// For each request of one kind, nanoseconds.
pub(crate) struct Kind {
    pub(crate) gross: u64,
    /// The daemon's processor time; `None` if it is not known, or one looks all the time.
    daemon: Option<u64>,
}

impl Bench {
    /// A daemon with `live` mappings, made in random order.
    pub(crate) fn start(places: Places, polls: bool, live: usize) -> Self {
        let daemon = start_daemon(polls);
        pin(Some(daemon.pid()), places.daemon);
        pin(None, places.driver);
        let (vmm, requests) = start_queues(&daemon);
        let ram = vmm.memory.ram.clone();
        let wait = if places.is_one() { Wait::Sleep } else { Wait::Look };
        let kick = |queue: &Queue| queue.kick.write(1).unwrap();
        let driver = Driver::new(ram, requests, wait, Box::new(kick));
        let mut bench = Self::over(driver, ENDPOINT, live);
        (bench.polls, bench.ours) = (polls, Some((daemon, vmm)));
        bench
    }

    /// Any device behind `driver`, which knows of `endpoint`.
    pub(crate) fn over(mut driver: Driver, endpoint: u32, live: usize) -> Self {
        driver.send(&[attach(DOMAIN, endpoint, 0)], Expected::Ok);
        let work = Work::new(live);
        for pages in work.all().chunks(MAX_BATCH) {
            driver.send(&requests_for(pages, map_page), Expected::Ok);
        }
        Self { ours: None, driver, polls: false, work }
    }

    /// The daemon.
    pub(crate) fn daemon(&self) -> &Daemon {
        &self.ours.as_ref().unwrap().0
    }

    /// Processor time of our daemon, if it uses none while there is nothing to do.
    fn used_ns(&self) -> u64 {
        let asleep_between = self.ours.as_ref().filter(|_| !self.polls);
        asleep_between.map_or(0, |(daemon, _)| used_ns(daemon.pid()))
    }

    /// Measures with both batches, and prints a row for each.
    pub(crate) fn print(&mut self, scope: &Scope) {
        for (batch, requests) in [(MAX_BATCH, scope.batched), (1, scope.single)] {
            let costs = self.measure(batch, requests);
            costs.print(self.work.all().len(), batch);
        }
    }

    /// Unmaps and maps again `requests` pages in batches of `batch`.
    pub(crate) fn measure(&mut self, batch: usize, requests: usize) -> Costs {
        let pages = (self.work.all().len() / 2).min(LONGEST_RUN);
        let (mut maps, mut unmaps) = (Run::default(), Run::default());
        for _ in 0..requests.div_ceil(pages) {
            let pages = self.work.take(pages.min(requests));
            unmaps.add(self.run(&pages, batch, unmap_page));
            maps.add(self.run(&pages, batch, map_page));
        }
        let kicked = (maps.kicked + unmaps.kicked, maps.took.len() + unmaps.took.len());
        let empty_round_trip = self.empty(1);
        let empty = self.empty(batch) / batch as u64;
        Costs { empty_round_trip, empty, map: maps.each(batch), unmap: unmaps.each(batch), kicked }
    }

    /// Sends one request for each page.
    fn run(&mut self, pages: &[u64], batch: usize, request: fn(u64) -> Vec<u8>) -> Run {
        let before = self.used_ns();
        let mut run = Run { requests: pages.len() as u64, ..Run::default() };
        for pages in pages.chunks(batch) {
            let sent = self.send(&requests_for(pages, request), Expected::Ok);
            run.took.push(sent.took_ns);
            run.kicked += usize::from(sent.kicked);
        }
        run.daemon_ns = self.used_ns() - before;
        run
    }

    /// Sends a batch to a daemon that is asleep, or looks.
    fn send(&mut self, requests: &[Vec<u8>], expected: Expected) -> Sent {
        if !self.polls {
            self.driver.let_sleep();
        }
        self.driver.send(requests, expected)
    }

    /// The time of a batch of requests that do nothing.
    fn empty(&mut self, batch: usize) -> u64 {
        let requests = vec![unknown(); batch];
        let took = |_| self.send(&requests, Expected::Anything).took_ns;
        median((0..EMPTY_ROUNDS).map(took).collect())
    }
}

/// A daemon that waits for its front-end.
pub(crate) fn start_daemon(polls: bool) -> Daemon {
    let mut options = OPTIONS.to_vec();
    options.extend(["--poll-us", if polls { POLL_US } else { "0" }]);
    Daemon::with(&options)
}

/// A VMM whose guest has started its queues; the request queue.
fn start_queues(daemon: &Daemon) -> (Vmm, Queue) {
    let mut vmm = Vmm::connect(daemon);
    let requests = Queue::new(&vmm.memory.ram, REQUEST_QUEUE_AT, QUEUE_SIZE);
    let events = Queue::new(&vmm.memory.ram, EVENT_QUEUE_AT, QUEUE_SIZE);
    vmm.begin(LINUX_FEATURES);
    vmm.start(REQUEST, &requests, 0).unwrap();
    vmm.start(EVENT, &events, 0).unwrap();
    (vmm, requests)
}

fn requests_for(pages: &[u64], request: fn(u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    pages.iter().map(|page| request(*page)).collect()
}

/// Batches of one kind.
#[derive(Default)]
struct Run {
    took: Vec<u64>,
    kicked: usize,
    requests: u64,
    daemon_ns: u64,
}

impl Run {
    fn add(&mut self, more: Self) {
        self.took.extend(more.took);
        self.kicked += more.kicked;
        self.requests += more.requests;
        self.daemon_ns += more.daemon_ns;
    }

    fn each(self, batch: usize) -> Kind {
        let daemon = Some(self.daemon_ns / self.requests).filter(|ns| *ns > 0);
        Kind { gross: median(self.took) / batch as u64, daemon }
    }
}

impl Costs {
    fn print(&self, live: usize, batch: usize) {
        let net = |kind: &Kind| {
            let share = self.empty_round_trip / batch as u64;
            (i128::from(kind.gross) - i128::from(share)).to_string()
        };
        let daemon = |kind: &Kind| kind.daemon.map_or_else(|| "-".to_owned(), |ns| ns.to_string());
        let (kicked, batches) = self.kicked;
        row(&[
            count(live),
            batch.to_string(),
            self.empty_round_trip.to_string(),
            self.empty.to_string(),
            self.map.gross.to_string(),
            net(&self.map),
            self.unmap.gross.to_string(),
            net(&self.unmap),
            daemon(&self.map),
            daemon(&self.unmap),
            format!("{} %", 100 * kicked / batches),
        ]);
    }
}
