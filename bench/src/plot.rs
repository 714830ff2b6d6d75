//! Drawings as SVG: distributions of latency, and curves of a measure over a load. Text is left to the viewer's fonts.

use std::path::Path;

use hdrhistogram::Histogram;
use plotters::coord::ranged1d::{KeyPointHint, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Of a drawing, pixels.
const SIZE: (u32, u32) = (900, 480);
/// Lines' colours, one after the other: told apart by eyes that see no red or no green, too (Okabe and Ito's palette).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
/// Points of a distribution's line for each halving of what is left: as fine as the eye sees.
const TICKS_A_HALVING: u32 = 20;

/// A name and its points.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One chart of curves.
#[derive(Debug, Clone)]
pub(crate) struct Curves<'a> {
    pub(crate) title: &'a str,
    /// What stands below, with its unit.
    pub(crate) x: &'a str,
    /// What stands at the left, with its unit.
    pub(crate) y: &'a str,
    pub(crate) lines: Vec<Curve>,
    /// Drawn across as a line: a bound.
    pub(crate) bound: Option<f64>,
    /// Whether the load's axis is logarithmic.
    pub(crate) log_x: bool,
}

/// Draws how latency (of histograms of microseconds) grows towards the last percent: 1/(1-p), logarithmic, against
/// milliseconds.
///
/// # Errors
/// The drawing's or the file's.
pub(crate) fn percentiles(path: &Path, title: &str, histograms: &[(&str, &Histogram<u64>)]) -> Result<(), String> {
    let lines: Vec<Curve> = histograms.iter().map(|(name, histogram)| distribution(name, histogram)).collect();
    let most = histograms.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or(1).max(10) as f64;
    let top = highest(&lines, None);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(told)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(Nines(most), 0.0..top)
        .map_err(told)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("milliseconds")
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(told)?;
    draw(&mut chart, &lines)?;
    root.present().map_err(told)
}

/// Draws curves, one chart above the other.
///
/// # Errors
/// The drawing's or the file's.
pub(crate) fn curves(path: &Path, charts: &[Curves<'_>]) -> Result<(), String> {
    let size = (SIZE.0, SIZE.1 * charts.len().max(1) as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(told)?;
    for (area, chart) in root.split_evenly((charts.len().max(1), 1)).iter().zip(charts) {
        one(area, chart)?;
    }
    root.present().map_err(told)
}

fn one(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, curves: &Curves<'_>) -> Result<(), String> {
    let points = || curves.lines.iter().flat_map(|line| &line.points);
    let first = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let last = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    if !(first.is_finite() && last.is_finite()) {
        return Err(format!("{}: nothing to draw", curves.title));
    }
    let top = highest(&curves.lines, curves.bound);
    let mut builder = ChartBuilder::on(area);
    builder.caption(curves.title, ("sans-serif", 18)).margin(12).x_label_area_size(48).y_label_area_size(72);
    let bound = curves.bound.map(|bound| Curve {
        name: format!("bound: {}", short(bound)),
        points: vec![(first, bound), (last.max(first * 1.01), bound)],
    });
    let lines: Vec<Curve> = curves.lines.iter().cloned().chain(bound).collect();
    // The two axes are two types of plotters'.
    macro_rules! on {
        ($range:expr) => {{
            let mut chart = builder.build_cartesian_2d($range, 0.0..top).map_err(told)?;
            chart
                .configure_mesh()
                .x_desc(curves.x)
                .y_desc(curves.y)
                .x_label_formatter(&|x| short(*x))
                .y_label_formatter(&|y| short(*y))
                .light_line_style(TRANSPARENT)
                .draw()
                .map_err(told)?;
            draw(&mut chart, &lines)
        }};
    }
    if curves.log_x && first > 0.0 { on!((first..last.max(first * 1.01)).log_scale()) } else { on!(0.0..last) }
}

fn draw<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    lines: &[Curve],
) -> Result<(), String>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))
            .map_err(told)?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
        .map_err(told)
}

/// The line of a histogram of microseconds.
fn distribution(name: &str, histogram: &Histogram<u64>) -> Curve {
    let most = histogram.len().max(1) as f64;
    let points = histogram.iter_quantiles(TICKS_A_HALVING).map(|at| {
        let rest = (1.0 - at.quantile_iterated_to()).max(1.0 / most);
        (1.0 / rest, at.value_iterated_to() as f64 / 1000.0)
    });
    Curve { name: name.to_owned(), points: points.collect() }
}

/// Where the axis ends: above the highest point.
fn highest(lines: &[Curve], bound: Option<f64>) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let top = points.chain(bound).filter(|y| y.is_finite()).fold(0.0, f64::max);
    if top > 0.0 { top * 1.1 } else { 1.0 }
}

/// A number as it is read on an axis: 20M, 1.5k, 0.25.
fn short(number: f64) -> String {
    let (scaled, unit) = match number.abs() {
        1e9.. => (number / 1e9, "G"),
        1e6.. => (number / 1e6, "M"),
        1e3.. => (number / 1e3, "k"),
        _ => (number, ""),
    };
    let digits = if scaled.abs() >= 100.0 { 0 } else { 2 };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The axis 1/(1-p), logarithmic, from 1 up, labelled by percentiles: 0, 90, 99, 99.9 …
struct Nines(f64);

impl Ranged for Nines {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = value.max(1.0).log10() / self.0.log10();
        limit.0 + (f64::from(limit.1 - limit.0) * part) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..=self.0.log10() as i32).map(|nines| 10_f64.powi(nines)).chain([2.0]).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        1.0..self.0
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(value: &f64) -> String {
        let percent = format!("{:.6}", 100.0 - 100.0 / value);
        percent.trim_end_matches('0').trim_end_matches('.').to_owned() + " %"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_drawn_up_to_its_last_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.svg");
        let mut histogram = crate::tally::microseconds();
        for us in 1..=10_000 {
            histogram.record(us).unwrap();
        }
        let line = distribution("x", &histogram);
        let last = line.points.last().unwrap();
        assert!(last.0 >= 9_999.0 && (9.9..10.1).contains(&last.1), "{last:?}");
        percentiles(&path, "title", &[("delivered", &histogram), ("nothing", &crate::tally::microseconds())]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["<svg", "title", "delivered", "99.9 %", "milliseconds"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn curves_are_drawn_with_their_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.svg");
        let line = Curve { name: "p99".into(), points: vec![(1e6, 3.0), (2e7, 80.0)] };
        let chart =
            Curves { title: "t", x: "deliveries/s", y: "ms", lines: vec![line], bound: Some(100.0), log_x: true };
        let plain = Curves { log_x: false, bound: None, ..chart.clone() };
        curves(&path, &[chart.clone(), plain]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("bound: 100") && svg.contains("deliveries/s") && svg.matches("p99").count() == 2);
        assert!(curves(&path, &[Curves { lines: Vec::new(), ..chart }]).is_err());
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [(0.0, "0"), (0.25, "0.25"), (1500.0, "1.5k"), (2e7, "20M"), (150_000.0, "150k")] {
            assert_eq!(short(number), text);
        }
    }
}
