import SCSI

/// Text requests and logout in the full-feature phase (RFC 7143 11.10, 11.11, 11.14, 11.15).
extension Session {
    func receiveText(_ request: BasicHeader, _ data: UnsafeRawBufferPointer) {
        let continues = request.flags & 0x40 != 0
        let tag = request.targetTransferTag
        if tag == BasicHeader.reservedTag {
            // A new negotiation ends an unfinished one.
            if textTag != BasicHeader.reservedTag && textRequest.isEmpty { textAnswer = [] }
            if textRequest.isEmpty { textTag = BasicHeader.reservedTag }
        } else if tag != textTag {
            reject(request, .protocolError)
            ended(request)
            return
        }
        guard textRequest.count + data.count <= limits.textBytes else {
            reject(request, .protocolError)
            ended(request)
            textRequest = []
            return
        }
        if !textAnswer.isEmpty {
            sendText(request)
            return
        }
        textRequest += data
        if continues {
            if textTag == BasicHeader.reservedTag { textTag = takeTransferTag() }
            ended(request)
            emit(numbered(textResponse(request, flags: 0, tag: textTag)))
            return
        }
        let keys = try? TextKeys(textRequest)
        textRequest = []
        guard let keys else {
            reject(request, .protocolError)
            ended(request)
            return
        }
        textAnswer = answer(keys).encoded
        sendText(request)
    }

    private func textResponse(_ request: BasicHeader, flags: UInt8, tag: UInt32) -> BasicHeader {
        var header = BasicHeader(.textResponse, flags: flags)
        header.lun = request.lun
        header.initiatorTaskTag = request.initiatorTaskTag
        header.targetTransferTag = tag
        return header
    }

    /// Sends as much of the answer as the initiator takes in one PDU.
    private func sendText(_ request: BasicHeader) {
        ended(request)
        let part = Array(textAnswer.prefix(parameters.sendSegmentBytes))
        textAnswer.removeFirst(part.count)
        if textAnswer.isEmpty {
            textTag = BasicHeader.reservedTag
            emit(numbered(textResponse(request, flags: 0x80, tag: BasicHeader.reservedTag)), part)
        } else {
            if textTag == BasicHeader.reservedTag { textTag = takeTransferTag() }
            emit(numbered(textResponse(request, flags: 0x40, tag: textTag)), part)
        }
    }

    private func answer(_ keys: TextKeys) -> TextKeys {
        var reply = TextKeys()
        for (key, value) in keys.pairs {
            switch key {
            case "SendTargets": appendTargets(value, &reply)
            case "MaxRecvDataSegmentLength":
                guard let bytes = TextValue.number(value), (512...16_777_215).contains(bytes) else {
                    reply.append(key, "Reject")
                    continue
                }
                parameters.sendSegmentBytes = Int(bytes)
            case "InitiatorAlias": break
            default: reply.append(key, "NotUnderstood")
            }
        }
        return reply
    }

    /// RFC 7143 appendix C: all targets in a discovery session only; otherwise the session's own.
    private func appendTargets(_ value: String, _ reply: inout TextKeys) {
        let name: String?
        switch value {
        case "All":
            guard isDiscovery else {
                reply.append("SendTargets", "Reject")
                return
            }
            name = nil
        case "":
            guard let target = outcome.target else {
                reply.append("SendTargets", "Reject")
                return
            }
            name = target
        default:
            name = ISCSIName.normalized(value) ?? value
            guard isDiscovery || name == outcome.target else { return }
        }
        let targets = directory.discover(
            initiator: outcome.initiatorPort.name, name: name, localAddress: localAddress)
        for target in targets {
            reply.append("TargetName", target.iqn)
            for address in target.addresses { reply.append("TargetAddress", address) }
        }
    }

    func receiveLogout(_ request: BasicHeader) {
        ended(request)
        var header = BasicHeader(.logoutResponse)
        header.initiatorTaskTag = request.initiatorTaskTag
        let isRecovery = request.flags & 0x7F == 2
        let isOtherConnection =
            request.flags & 0x7F == 1 && UInt16(request[long: 20] >> 16) != outcome.connectionID
        header[byte: 2] = isRecovery ? 2 : isOtherConnection ? 1 : 0
        header = numbered(header)
        // Time2Wait and Time2Retain: the session can come back at once, and nothing of it is kept.
        emit(header)
        guard !isRecovery && !isOtherConnection else { return }
        pump()
        flush()
        close("it logged out")
    }
}
