@testable import ISCSI

/// Text keys, numbers, binary values, CHAP answers and names.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzValues(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    if let keys = try? TextKeys(bytes) {
        precondition(keys.pairs.count <= TextKeys.pairLimit)
        if let again = try? TextKeys(keys.encoded) { precondition(again == keys) }
        if let chap = try? CHAPCredentials(user: "u", secret: Array("no-corpus-has-this".utf8)) {
            var exchange = CHAPExchange(credentials: [chap], random: { [UInt8](repeating: 0x3C, count: $0) })
            if (try? exchange.receive(keys)) != nil { _ = try? exchange.receive(keys) }
        }
        var parameters = SessionParameters()
        for (key, value) in keys.pairs {
            _ = parameters.negotiate(key, value, limits: .init(), isDiscovery: false)
        }
        precondition(parameters.sendSegmentBytes >= 512)
    }
    let text = String(decoding: bytes, as: UTF8.self)
    if let value = TextValue.binary(text, limit: 64) { precondition(value.count <= 64) }
    _ = TextValue.number(text)
    if let name = ISCSIName.normalized(text) { precondition(name.utf8.count <= ISCSIName.byteLimit) }
    _ = printable(text)
    return 0
}
