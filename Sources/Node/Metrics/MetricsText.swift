import SCSI

/// Metrics in Prometheus' text format, version 0.0.4.
struct MetricsText {
    static let contentType = "text/plain; version=0.0.4; charset=utf-8"

    private(set) var text = ""

    enum Kind: String { case gauge, counter }

    struct Sample {
        var labels: [(String, String)]
        var value: Double

        init(_ value: Double, _ labels: [(String, String)] = []) {
            self.labels = labels
            self.value = value
        }
    }

    /// One family: its help, its type, its samples. A family without samples is left out.
    mutating func add(_ name: String, _ kind: Kind, _ help: String, _ samples: [Sample]) {
        guard !samples.isEmpty else { return }
        text += "# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n"
        for sample in samples {
            let labels = sample.labels.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",")
            text += name + (labels.isEmpty ? "" : "{\(labels)}") + " \(Self.number(sample.value))\n"
        }
    }

    /// A histogram of seconds; its buckets add up, as the format wants it.
    mutating func add(
        _ name: String, _ help: String, _ histograms: [(labels: [(String, String)], histogram: LatencyHistogram)]
    ) {
        guard !histograms.isEmpty else { return }
        text += "# HELP \(name) \(help)\n# TYPE \(name) histogram\n"
        for (pairs, histogram) in histograms {
            let labels = pairs.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",")
            var sum: UInt64 = 0
            for (index, count) in histogram.counts.enumerated() {
                sum += count
                let bounds = LatencyHistogram.upperBoundsSeconds
                let bound = index < bounds.count ? String(bounds[index]) : "+Inf"
                text += "\(name)_bucket{\(labels),le=\"\(bound)\"} \(sum)\n"
            }
            text += "\(name)_sum{\(labels)} \(Double(histogram.sumNanoseconds) / 1e9)\n"
            text += "\(name)_count{\(labels)} \(sum)\n"
        }
    }

    private static func escaped(_ value: String) -> String {
        value.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
    }

    private static func number(_ value: Double) -> String {
        value == value.rounded() && abs(value) < 9e15 ? String(Int64(value)) : String(value)
    }
}
