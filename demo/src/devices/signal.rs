//! A reading that drifts: a random walk drawn back to its centre, with a little noise.

use super::Metric;

/// Part of the way back to the centre, a sample.
const PULL: f64 = 0.06;
/// Part of the way to or from a surge, a sample.
const RISE: f64 = 0.8;

/// One metric's course.
#[derive(Debug, Clone)]
pub(crate) struct Signal {
    metric: Metric,
    drift: f64,
    surge: f64,
}

impl Signal {
    pub(crate) fn new(metric: Metric) -> Self {
        Self { metric, drift: 0.0, surge: 0.0 }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.metric.name
    }

    /// The next sample.
    pub(crate) fn sample(&mut self, surging: bool) -> f64 {
        let Metric { centre, swing, surge, decimals, .. } = self.metric;
        let either_way = || fastrand::f64() * 2.0 - 1.0;
        self.drift = (self.drift * (1.0 - PULL) + either_way() * swing * 0.25).clamp(-swing, swing);
        let aim = if surging { surge } else { 0.0 };
        self.surge += (aim - self.surge) * RISE;
        let value = centre + self.drift + self.surge + either_way() * swing * 0.05;
        let scale = 10_f64.powi(i32::from(decimals));
        (value * scale).round() / scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_stays_near_its_centre_moves_and_surges() {
        let metric = Metric { name: "pressure_psi", centre: 142.7, swing: 2.5, surge: 12.0, decimals: 1 };
        let mut signal = Signal::new(metric);
        let calm: Vec<f64> = (0..1_000).map(|_| signal.sample(false)).collect();
        assert!(calm.iter().all(|value| (139.0..=146.0).contains(value)), "calm readings must stay below the alert");
        assert!(calm.windows(2).any(|pair| (pair[0] - pair[1]).abs() > f64::EPSILON), "the reading never moves");
        let surging: Vec<f64> = (0..20).map(|_| signal.sample(true)).collect();
        assert!(surging[3..].iter().all(|value| *value > 150.0), "a surge must exceed the alert: {surging:?}");
        let after: Vec<f64> = (0..20).map(|_| signal.sample(false)).collect();
        assert!(after[5..].iter().all(|value| *value < 147.0), "{after:?}");
    }
}
