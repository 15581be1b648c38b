//! Arrivals and departures while messages flow: an open loop of visitors, each of whom replaces another.
//!
//! A departing visitor stays until it has seen everything published up to its dismissal, so that no loss stays hidden;
//! its replacement arrives meanwhile. That takes a few places more than there are visitors.

/// Schedules arrivals and tracks free places. The caller handles the connections.
#[derive(Debug)]
pub struct Arrivals {
    /// Arrivals a second.
    rate: f64,
    start_ns: Option<u64>,
    begun: u64,
    free: Vec<usize>,
    departing: Vec<Departing>,
}

/// A dismissed visitor.
#[derive(Debug)]
pub struct Departing {
    pub place: usize,
    /// Sequence numbers it must see before it goes, one per publisher of its channel.
    pub ends: Vec<u32>,
    /// Latest time of its departure.
    pub deadline_ns: u64,
}

/// Seconds for which visitors that cannot complete their messages can be replaced.
const SPARE_SECONDS: f64 = 2.0;

/// Places in addition to the visitors' own.
pub fn spare_places(rate: f64) -> usize {
    (rate * SPARE_SECONDS) as usize + 16
}

impl Arrivals {
    /// `free` are the unoccupied places at the start.
    pub fn new(rate: f64, free: std::ops::Range<usize>) -> Self {
        Self {
            rate,
            start_ns: None,
            begun: 0,
            free: free.rev().collect(),
            departing: Vec::new(),
        }
    }

    pub fn have_begun(&self) -> bool {
        self.start_ns.is_some()
    }

    /// Due time of the next visitor. The first call starts the clock.
    pub fn due_ns(&mut self, now_ns: u64) -> u64 {
        let start_ns = *self.start_ns.get_or_insert(now_ns);
        start_ns + (self.begun as f64 / self.rate * 1e9) as u64
    }

    /// A place for the due visitor: none while too many dismissed visitors are still there.
    pub fn begin(&mut self) -> Option<usize> {
        let place = self.free.pop()?;
        self.begun += 1;
        Some(place)
    }

    pub fn send_away(&mut self, departing: Departing) {
        self.departing.push(departing);
    }

    pub fn is_anybody_departing(&self) -> bool {
        !self.departing.is_empty()
    }

    /// The departing visitors for which `may_go` is true; their places are free from now on.
    pub fn departures(&mut self, may_go: impl Fn(&Departing) -> bool) -> Vec<Departing> {
        let gone: Vec<Departing> = self.departing.extract_if(.., |departing| may_go(departing)).collect();
        self.free.extend(gone.iter().map(|departing| departing.place));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_come_at_their_rate_whether_there_is_a_place_or_not() {
        let mut arrivals = Arrivals::new(1_000.0, 5..7);
        assert_eq!((arrivals.due_ns(50), arrivals.begin()), (50, Some(5)));
        assert_eq!((arrivals.due_ns(60), arrivals.begin()), (1_000_050, Some(6)));
        assert_eq!((arrivals.due_ns(70), arrivals.begin()), (2_000_050, None));
        assert_eq!(
            arrivals.due_ns(9_000_000),
            2_000_050,
            "who waits for a place is late, not forgotten"
        );
    }

    #[test]
    fn a_place_is_free_when_its_visitor_has_gone() {
        let mut arrivals = Arrivals::new(1.0, 0..0);
        for place in [3, 4] {
            arrivals.send_away(Departing {
                place,
                ends: vec![1],
                deadline_ns: 9,
            });
        }
        assert_eq!(arrivals.departures(|departing| departing.place == 4).len(), 1);
        assert_eq!((arrivals.begin(), arrivals.begin()), (Some(4), None));
        assert!(arrivals.is_anybody_departing());
    }
}
