#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

/* libvirt takes callbacks of all kinds as one type, behind a cast that Swift cannot write. */
static inline int clibvirt_watch_lifecycle(
    virConnectPtr connection, virDomainPtr domain, virConnectDomainEventCallback callback, void *opaque,
    virFreeCallback release)
{
    return virConnectDomainEventRegisterAny(
        connection, domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, release);
}
