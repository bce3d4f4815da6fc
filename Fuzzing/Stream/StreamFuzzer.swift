import BlockStore

/// Streams of snapshots, cut into records, in pieces whose sizes the input chooses. A fuzzer that knew no checksums
/// would never get past them: the input also goes in with its checksums made right.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzStream(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    guard let first = bytes.first else { return 0 }
    let step = Int(first) * 37 + 1
    feed(bytes, step)
    let mended = StreamParser.withChecksumsMended(bytes)
    mended.withUnsafeBytes { feed($0, step) }
    return 0
}

private func feed(_ bytes: UnsafeRawBufferPointer, _ step: Int) {
    var parser = StreamParser()
    var at = 0
    while at < bytes.count {
        let end = min(bytes.count, at + step)
        guard parser.accepts(UnsafeRawBufferPointer(rebasing: bytes[at..<end])) else { return }
        at = end
    }
}
