/* What the files of the port share. */
#include "xen.h"

#define REQUESTS 128                    /* of page-table entries, made in one entrance */

extern struct StartInfo *start_info;
extern u32 *mfn_list;                   /* our pages' numbers of machine pages */

void insist(bool ok);                   /* none of our requests may fail */
u32 ask(u32 number, u32 a, u32 b, u32 c, u32 d);
u32 page_of(u32 mfn);
u64 *own_entry(u32 page);               /* of the kernel's mapping of a page */
void set_own(u32 page, u32 bits);

/* paravirt_balloon.c */
void balloon_start(void);
void balloon_event(void);               /* the store has something for us */
void balloon_tick(void);
