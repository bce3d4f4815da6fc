import SCSI

@testable import ISCSI

private struct Policy: LoginPolicy {
    let credentials: [CHAPCredentials]
    func authorize(initiator: String, target: String?) -> LoginAuthorization {
        .allowed(credentials: target == nil ? [] : credentials)
    }
}

/// A byte stream of login PDUs. Nobody may get into a target without its CHAP secret, which is not in the corpus.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzLogin(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard let chap = try? CHAPCredentials(user: "u", secret: Array("no-corpus-has-this".utf8)) else { return 0 }
    var machine = LoginMachine(
        limits: .init(), policy: Policy(credentials: [chap]), random: { [UInt8](repeating: 0x3C, count: $0) })
    let framing = PDUFraming(dataSegmentLimit: 16 << 10)
    var bytes = UnsafeRawBufferPointer(start: start, count: count)
    while case .frame(let frame) = framing.next(bytes) {
        switch machine.receive(frame.header, bytes[frame.data]) {
        case .respond: break
        case .open(let outcome):
            precondition(outcome.target == nil, "logged in without the secret")
            _ = machine.accept(tsih: 1)
            return 0
        case .fail, .drop: return 0
        }
        bytes = UnsafeRawBufferPointer(rebasing: bytes[frame.byteCount...])
    }
    return 0
}
